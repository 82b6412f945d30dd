"""BEIR's original archives: a zip at a URL, verified against its published checksum before it is read.

An interrupted download resumes. Only the three known files are extracted, under fixed names, so no member can leave the
folder. An archive that would unpack to an implausible size is refused.
"""

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from uuid import uuid4

from retbench.cards.task import TaskCard
from retbench.corpora import beir_folder
from retbench.corpora.dataset_source import DatasetSource, require_source_field
from retbench.corpora.published_files import CHUNK_BYTES, PublishedFile, find_published_file
from retbench.corpora.rows import RawCollection
from retbench.errors import DataError
from retbench.system.user_config import require_disk_space

COLLECTION_FILES = re.compile(r"(corpus|queries)\.jsonl|qrels/[\w.-]+\.tsv")
ENCRYPTED = 1  # the bit of a zip member that has a password
MAX_EXPANSION = 200  # unpacked size by packed size: about 10 for text, over 1000 for a zip bomb


def build_archive_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `archive`."""
    member = require_source_field(card.name, "member", card.source.member)
    archive = find_published_file(card, ".zip")
    return DatasetSource(
        label=card.name,
        compute_cache_key=lambda: "\n".join(("archive", archive.url, archive.checksum, member)),
        origin=archive.url,
        is_available=archive.is_fetched,
        open_rows=lambda: _open_unpacked(archive, member),
        fetch=archive.fetch,
        revision=archive.checksum,
        source_paths=(archive.file,),
    )


@contextmanager
def _open_unpacked(archive: PublishedFile, member: str) -> Iterator[RawCollection]:
    folder = archive.file.parent / f"unpacked.{uuid4().hex[:8]}.partial"
    try:
        _unpack(archive, member, folder)
        yield replace(beir_folder.read_collection(folder), published=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(published: PublishedFile, member: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(published.file) as archive:
            infos = {name: info for info in archive.infolist() if (name := _match_member(info.filename, member))}
            _check_members(published, member, infos)
            (folder / "qrels").mkdir(parents=True)
            require_disk_space(folder, sum(info.file_size for info in infos.values()))
            for name, info in infos.items():
                with archive.open(info) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out, CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise DataError(f"{published.url} is damaged: {problem}", f"delete {published.file}, fetch again") from problem


def _match_member(path: str, member: str) -> str | None:
    """Return the name of a known collection file relative to the folder `member`; None for any other path."""
    parts, prefix = PurePosixPath(path).parts, PurePosixPath(member).parts
    name = "/".join(parts[len(prefix) :])
    return name if parts[: len(prefix)] == prefix and COLLECTION_FILES.fullmatch(name) else None


def _check_members(archive: PublishedFile, member: str, infos: dict[str, zipfile.ZipInfo]) -> None:
    if "corpus.jsonl" not in infos:
        raise DataError(f"{archive.url} has no collection {member!r}", "check `member` in the task's card")
    for name, info in infos.items():
        if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{archive.url}: {name} is encrypted or packed in an unusual way", "pack it as a plain zip")
    packed, unpacked = archive.file.stat().st_size, sum(info.file_size for info in infos.values())
    if unpacked > MAX_EXPANSION * packed:
        raise DataError(f"{archive.url} would unpack to {unpacked / packed:,.0f} times its size", "do not trust it")
