"""Checksums of files: a big one is read once and its digest remembered for as long as the file is not touched.

Not touched means: the same size, time of change and inode at the same place. A file that was changed within the last
moments is read again, because a second change could leave the same time behind.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from retbench.cards import user_config
from retbench.cards.text_parsers import parse_json

# Below this a file is read faster than it is looked up.
MIN_CACHED_BYTES = 1 << 20
# Clocks of file systems tick in steps of up to two seconds.
CLOCK_RESOLUTION_NS = 2_000_000_000


def cached_sha256(file: Path) -> str:
    """The checksum of a file; that of a big one is remembered."""
    stat = file.stat()
    if stat.st_size < MIN_CACHED_BYTES:
        return compute_sha256(file)
    here = str(file.resolve())
    seen = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    known = _load_checksums().get(here, {})
    if {key: known.get(key) for key in seen} == seen:
        return str(known["sha256"])
    checksum = compute_sha256(file)
    if time.time_ns() - stat.st_mtime_ns > CLOCK_RESOLUTION_NS:
        with suppress(OSError):  # a cache that cannot be written: the next look reads the file again
            _save_checksum(here, {**seen, "sha256": checksum})
    return checksum


def compute_sha256(file: Path) -> str:
    """The checksum of a file, read now."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _checksum_cache_file() -> Path:
    return user_config.cache_folder() / "checksums.json"


def _load_checksums() -> dict[str, Any]:
    """What is remembered; notes that cannot be read are no notes, and the files are read again."""
    try:
        notes = parse_json(_checksum_cache_file().read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    sound = isinstance(notes, dict) and all(isinstance(note, dict) and "sha256" in note for note in notes.values())
    return notes if sound else {}


def _save_checksum(here: str, entry: dict[str, Any]) -> None:
    memory = _checksum_cache_file()
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):
        fresh = memory.with_suffix(".partial")
        known = {file: note for file, note in _load_checksums().items() if Path(file).exists()}
        fresh.write_text(json.dumps({**known, here: entry}, indent=1), encoding="utf-8")
        os.replace(fresh, memory)
