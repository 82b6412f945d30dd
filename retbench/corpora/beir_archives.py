"""BEIR's original archives: a zip at an address, checked against its published checksum before a byte of it is read.

An interrupted download goes on where it stopped. Of the archive only the three known files are taken, under names of
our own, so nothing in it can climb out of its folder; what would unpack to far more than a text can is refused.
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
from retbench.cards.user_config import cache_folder, need_room
from retbench.corpora import beir_folder
from retbench.corpora.dataset_source import Say, Supply, needed
from retbench.corpora.rows import Raw
from retbench.errors import DataError, MissingError

PIECE = 1 << 20
WANTED = re.compile(r"(corpus|queries)\.jsonl|qrels/[\w.-]+\.tsv")
MOST = 200  # times smaller than its content: text packs to a tenth, a bomb to a thousandth


@dataclass(frozen=True)
class Archive:
    """One zip: where it is published and what its checksum must be."""

    url: str
    kind: str
    checksum: str

    @property
    def file(self) -> Path:
        """Where it lies once it is whole."""
        return cache_folder() / "collections" / "archives" / f"{self.checksum}.zip"

    def here(self) -> bool:
        """Whether it was fetched and checked."""
        return self.file.exists()

    def fetch(self, say: Say) -> None:
        """Fetch it, going on from what an interrupted fetch left."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.file.with_suffix(".lock")):
            if self.here():
                return
            partial = self.file.with_suffix(".partial")
            _download(self.url, partial, say)
            found = _digest(partial, self.kind)
            if found != self.checksum:
                partial.unlink()
                raise DataError(
                    f"{self.url} has {self.kind} {found}; its card says {self.checksum}",
                    "fetch again; if it stays so, the archive was changed: do not trust it",
                )
            partial.rename(self.file)


def supply(card: TaskCard) -> Supply:
    """The supply of a card of kind `archive`."""
    source = card.source
    url, member = needed(card.name, "url", source.url), needed(card.name, "member", source.member)
    checksum = needed(card.name, "sha256` or `md5", source.sha256 or source.md5)
    archive = Archive(url, "sha256" if source.sha256 else "md5", checksum)
    return Supply(
        label=card.name,
        stamp=lambda: "\n".join(("archive", url, checksum, member)),
        origin=url,
        here=archive.here,
        read=lambda: _reading(archive, member),
        fetch=archive.fetch,
        revision=checksum,
        kept=(archive.file,),
    )


@contextmanager
def _reading(archive: Archive, member: str) -> Iterator[Raw]:
    work = archive.file.parent / f"unpacked.{uuid4().hex[:8]}.partial"
    try:
        _unpack(archive, member, work)
        yield replace(beir_folder.read(work), published=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(url: str, partial: Path, say: Say) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  # the address stands in a card
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310  # the same address
            continued = getattr(answer, "status", None) == 206
            size = int(answer.headers.get("Content-Length") or 0)
            need_room(partial, size)
            say(f"fetching {url}: {size / 1e6:,.1f} MB" + (f" after the {start / 1e6:,.1f} here" if continued else ""))
            with partial.open("ab" if continued else "wb") as out:
                shutil.copyfileobj(answer, out, PIECE)
                if size and out.tell() != size + (start if continued else 0):
                    raise OSError(f"it ended after {out.tell():,} bytes")
    except urllib.error.HTTPError as problem:
        if problem.code == 416 and start:  # everything is here already
            return
        raise _unreachable(url, problem) from problem
    except (OSError, HTTPException) as problem:
        raise _unreachable(url, problem) from problem


def _unreachable(url: str, problem: Exception) -> MissingError:
    return MissingError(
        f"{url} could not be fetched: {problem}", "fetch again where it can be reached: what came is kept"
    )


def _digest(file: Path, kind: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _unpack(published: Archive, member: str, work: Path) -> None:
    try:
        with zipfile.ZipFile(published.file) as archive:
            infos = {name: info for info in archive.infolist() if (name := _name(info.filename, member))}
            _refuse(published, member, infos)
            (work / "qrels").mkdir(parents=True)
            need_room(work, sum(info.file_size for info in infos.values()))
            for name, info in infos.items():
                with archive.open(info) as source, (work / name).open("wb") as out:
                    shutil.copyfileobj(source, out, PIECE)
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise DataError(f"{published.url} is damaged: {problem}", f"delete {published.file}, fetch again") from problem


def _name(path: str, member: str) -> str | None:
    """The known file a path in the archive is, seen from the collection's folder in it."""
    parts, folder = PurePosixPath(path).parts, PurePosixPath(member).parts
    name = "/".join(parts[len(folder) :])
    return name if parts[: len(folder)] == folder and WANTED.fullmatch(name) else None


def _refuse(archive: Archive, member: str, infos: dict[str, zipfile.ZipInfo]) -> None:
    if "corpus.jsonl" not in infos:
        raise DataError(f"{archive.url} holds no collection {member!r}", "check `member` in the task's card")
    packed, unpacked = archive.file.stat().st_size, sum(info.file_size for info in infos.values())
    if unpacked > MOST * packed:
        raise DataError(f"{archive.url} would unpack to {unpacked / packed:,.0f} times its size", "do not trust it")
