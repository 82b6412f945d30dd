"""Checksums of files. The checksum of a large file is cached until the file changes.

A file is unchanged while its path, size, modification time and inode are the same. The checksum of a file that was
modified within the last two seconds is not cached, because a second change could have the same modification time.

A failing disk changes bytes and none of these. So the cache says what a file is, and what is read from a file before
scores are computed is hashed again, once in each process.
"""

import functools
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from retbench.errors import DataError, ResourceError
from retbench.system import user_config
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically
from retbench.system.file_locks import hold_lock

# Hashing a smaller file is faster than looking it up.
MIN_CACHED_BYTES = 1 << 20
# Some file systems store times with a resolution of two seconds.
CLOCK_RESOLUTION_NS = 2_000_000_000


def cached_sha256(file: Path) -> str:
    """Get the SHA-256 of a file, from the cache for a large one."""
    if cached := _find_cached_checksum(file):
        return cached
    stat = file.stat()
    if stat.st_size < MIN_CACHED_BYTES or time.time_ns() - stat.st_mtime_ns <= CLOCK_RESOLUTION_NS:
        return compute_sha256(file)
    checksum = compute_sha256_once(file)
    with suppress(OSError, ResourceError):  # the cache cannot be written: the next process reads the file again
        _save_checksum(str(file.resolve()), {**_describe_state(stat), "sha256": checksum})
    return checksum


def compute_sha256_once(file: Path) -> str:
    """Read a file and compute its SHA-256; of a large one once in this process, while its size, time and inode stay."""
    stat = file.stat()
    if stat.st_size < MIN_CACHED_BYTES:
        return compute_sha256(file)
    return _compute_once(file, *_describe_state(stat).values())


def require_cached_checksum(file: Path) -> None:
    """Raise an error if a file has other bytes than when its checksum was cached, and the same size and time."""
    cached = _find_cached_checksum(file)
    if cached and compute_sha256_once(file) != cached:
        raise DataError(
            f"{file} is damaged: its bytes changed on disk, and its size and time did not",
            "copy or fetch it again; if the change was meant, `touch` the file",
        )


def compute_sha256(file: Path) -> str:
    """Read a file and compute its SHA-256."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@functools.lru_cache(maxsize=1024)
def _compute_once(file: Path, *_: int) -> str:
    return compute_sha256(file)


def _describe_state(stat: os.stat_result) -> dict[str, int]:
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _find_cached_checksum(file: Path) -> str | None:
    """Find the cached checksum of a large file; None if there is none, or the file changed."""
    stat = file.stat()
    if stat.st_size < MIN_CACHED_BYTES:
        return None
    entry, state = _load_checksums().get(str(file.resolve()), {}), _describe_state(stat)
    return str(entry["sha256"]) if {key: entry.get(key) for key in state} == state else None


def _get_checksum_cache_file() -> Path:
    return user_config.get_cache_folder() / "checksums.json"


def _load_checksums() -> dict[str, Any]:
    """Load the cached checksums; an unreadable cache counts as empty."""
    try:
        entries = parse_checked_json(_get_checksum_cache_file().read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    valid = all(isinstance(e, dict) and "sha256" in e for e in entries.values())
    return entries if valid else {}


def _save_checksum(path: str, entry: dict[str, Any]) -> None:
    cache_file = _get_checksum_cache_file()
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(cache_file.with_suffix(".lock")):
        existing = {file: e for file, e in _load_checksums().items() if Path(file).exists()}
        write_file_atomically(cache_file, encode_checked_json({**existing, path: entry}))
