"""BEIR's original archives: a zip at a URL, verified against its published checksum before it is read.

An interrupted download resumes. Only the three known files are extracted, under fixed names, so no member can leave the
folder. An archive that would unpack to an implausible size is refused.
"""

import hashlib
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from uuid import uuid4

from filelock import FileLock

from retbench.cards.task import TaskCard
from retbench.cards.user_config import get_cache_folder, require_disk_space
from retbench.corpora import beir_folder
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.rows import RawCollection
from retbench.errors import DataError, MissingError

CHUNK_BYTES = 1 << 20
COLLECTION_FILES = re.compile(r"(corpus|queries)\.jsonl|qrels/[\w.-]+\.tsv")
MAX_EXPANSION = 200  # unpacked size by packed size: about 10 for text, over 1000 for a zip bomb


@dataclass(frozen=True)
class ZipArchive:
    """One zip: its URL and its expected checksum."""

    url: str
    checksum_type: str
    checksum: str

    @property
    def file(self) -> Path:
        """The file in the cache, once it is complete."""
        return get_cache_folder() / "collections" / "archives" / f"{self.checksum}.zip"

    def is_fetched(self) -> bool:
        """Whether it was fetched and verified."""
        return self.file.exists()

    def fetch(self, log_status: StatusCallback) -> None:
        """Fetch it; an interrupted download resumes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.file.with_suffix(".lock")):
            if self.is_fetched():
                return
            partial = self.file.with_suffix(".partial")
            _download(self.url, partial, log_status)
            checksum = _compute_checksum(partial, self.checksum_type)
            if checksum != self.checksum:
                partial.unlink()
                raise DataError(
                    f"{self.url} has {self.checksum_type} {checksum}; its card has {self.checksum}",
                    "fetch again; if the checksum still differs, the archive was changed: do not trust it",
                )
            partial.rename(self.file)


def build_archive_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `archive`."""
    source = card.source
    url, member = (
        require_source_field(card.name, "url", source.url),
        require_source_field(card.name, "member", source.member),
    )
    checksum = require_source_field(card.name, "sha256` or `md5", source.sha256 or source.md5)
    archive = ZipArchive(url, "sha256" if source.sha256 else "md5", checksum)
    return DatasetSource(
        label=card.name,
        compute_cache_key=lambda: "\n".join(("archive", url, checksum, member)),
        origin=url,
        is_available=archive.is_fetched,
        open_rows=lambda: _open_unpacked(archive, member),
        fetch=archive.fetch,
        revision=checksum,
        source_paths=(archive.file,),
    )


@contextmanager
def _open_unpacked(archive: ZipArchive, member: str) -> Iterator[RawCollection]:
    folder = archive.file.parent / f"unpacked.{uuid4().hex[:8]}.partial"
    try:
        _unpack(archive, member, folder)
        yield replace(beir_folder.read_collection(folder), published=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(url: str, partial: Path, log_status: StatusCallback) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  # the URL is in a task card
    try:
        with urllib.request.urlopen(request) as response:  # noqa: S310  # the same URL
            continued = getattr(response, "status", None) == 206
            size = int(response.headers.get("Content-Length") or 0)
            require_disk_space(partial, size)
            log_status(
                f"fetching {url}: {size / 1e6:,.1f} MB"
                + (f" after {start / 1e6:,.1f} MB already here" if continued else "")
            )
            with partial.open("ab" if continued else "wb") as out:
                shutil.copyfileobj(response, out, CHUNK_BYTES)
                if size and out.tell() != size + (start if continued else 0):
                    raise OSError(f"the download ended after {out.tell():,} bytes")
    except urllib.error.HTTPError as problem:
        if problem.code == 416 and start:  # the file is already complete
            return
        raise _build_download_error(url, problem) from problem
    except (OSError, HTTPException) as problem:
        raise _build_download_error(url, problem) from problem


def _build_download_error(url: str, problem: Exception) -> MissingError:
    return MissingError(
        f"{url} could not be fetched: {problem}", "fetch again on a connected machine: the download resumes"
    )


def _compute_checksum(file: Path, kind: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _unpack(published: ZipArchive, member: str, folder: Path) -> None:
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


def _check_members(archive: ZipArchive, member: str, infos: dict[str, zipfile.ZipInfo]) -> None:
    if "corpus.jsonl" not in infos:
        raise DataError(f"{archive.url} has no collection {member!r}", "check `member` in the task's card")
    packed, unpacked = archive.file.stat().st_size, sum(info.file_size for info in infos.values())
    if unpacked > MAX_EXPANSION * packed:
        raise DataError(f"{archive.url} would unpack to {unpacked / packed:,.0f} times its size", "do not trust it")
