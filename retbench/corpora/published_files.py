"""Files at a URL, such as archives and judgments, verified against their published checksum before they are read.

An interrupted download resumes.
"""

import hashlib
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from retbench.cards.task import TaskCard
from retbench.corpora.dataset_source import StatusCallback, require_source_field
from retbench.errors import DataError, MissingError
from retbench.system.durable_files import move_into_place
from retbench.system.file_locks import hold_lock
from retbench.system.http_request import open_download
from retbench.system.user_config import get_cache_folder, require_disk_space

CHUNK_BYTES = 1 << 20
MAX_FILE_BYTES = 100 << 30  # many times the largest published collection
STALL_SECONDS, MIN_BYTES_PER_SECOND = 60, 1000


@dataclass(frozen=True)
class PublishedFile:
    """One file: its URL, its expected checksum and the ending of its name in the cache."""

    url: str
    checksum_type: str
    checksum: str
    suffix: str = ".zip"

    @property
    def file(self) -> Path:
        """The file in the cache, once it is complete."""
        return get_cache_folder() / "collections" / "archives" / f"{self.checksum}{self.suffix}"

    def is_fetched(self) -> bool:
        """Whether it was fetched and verified."""
        return self.file.exists()

    def fetch(self, log_status: StatusCallback) -> None:
        """Fetch it; an interrupted download resumes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.file.with_suffix(".lock")):
            if self.is_fetched():
                return
            partial = self.file.with_suffix(".partial")
            _download(self.url, partial, log_status)
            checksum = _compute_checksum(partial, self.checksum_type)
            if checksum != self.checksum:
                partial.unlink()
                raise DataError(
                    f"{self.url} has {self.checksum_type} {checksum}; its card has {self.checksum}",
                    "fetch again; if the checksum still differs, the file was changed: do not trust it",
                )
            move_into_place(partial, self.file)


def find_published_file(card: TaskCard, suffix: str) -> PublishedFile:
    """Return the file at the card's `url`, with its `sha256`, `md5` or `git_sha1` (git's checksum of the content)."""
    source = card.source
    url = require_source_field(card.name, "url", source.url)
    checksums = {"sha256": source.sha256, "md5": source.md5, "git": source.git_sha1}
    kind = next((kind for kind, checksum in checksums.items() if checksum), "sha256")
    checksum = require_source_field(card.name, "sha256` or `md5", checksums[kind])
    return PublishedFile(url, kind, checksum, suffix)


def _download(url: str, partial: Path, log_status: StatusCallback) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  # the URL is in a task card
    try:
        with open_download(request, STALL_SECONDS) as response:
            continued = getattr(response, "status", None) == 206
            size = _read_length(response)
            require_disk_space(partial, size)
            log_status(
                f"fetching {url}: {size / 1e6:,.1f} MB"
                + (f" after {start / 1e6:,.1f} MB already here" if continued else "")
            )
            with partial.open("ab" if continued else "wb") as out:
                _copy(response, out)
                if size and out.tell() != size + (start if continued else 0):
                    raise OSError(f"the download ended after {out.tell():,} bytes")
    except urllib.error.HTTPError as problem:
        if problem.code == 416 and start:  # the file is already complete
            return
        raise _build_download_error(url, problem) from problem
    except (OSError, HTTPException) as problem:
        raise _build_download_error(url, problem) from problem


def _read_length(response: Any) -> int:
    """The announced length; 0 if there is none. Raises an error for one that is no number, or too large."""
    length = response.headers.get("Content-Length") or "0"
    if not length.isdecimal() or len(length) > 18 or int(length) > MAX_FILE_BYTES:
        raise OSError(f"the server announces {length[:30]!r} bytes, more than a collection has")
    return int(length)


def _copy(response: Any, out: BinaryIO) -> None:
    """Copy what a server sends. One that never ends, or sends a byte a second, is given up."""
    started, received = time.monotonic(), 0
    while chunk := response.read1(CHUNK_BYTES):
        received += out.write(chunk)
        seconds = time.monotonic() - started
        if out.tell() > MAX_FILE_BYTES:
            raise OSError(f"the server sends over {MAX_FILE_BYTES >> 30} GB")
        if seconds > STALL_SECONDS and received < seconds * MIN_BYTES_PER_SECOND:
            raise OSError(f"the server sent {received:,} bytes in {seconds:.0f} seconds")


def _build_download_error(url: str, problem: Exception) -> MissingError:
    return MissingError(
        f"{url} could not be fetched: {problem}", "fetch again on a connected machine: the download resumes"
    )


def _compute_checksum(file: Path, kind: str) -> str:
    if kind == "git":
        content_bytes = file.read_bytes()
        header = b"blob %d\0" % len(content_bytes)
        return hashlib.sha1(header + content_bytes, usedforsecurity=False).hexdigest()
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
