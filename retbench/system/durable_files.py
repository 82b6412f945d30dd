"""Writing files that survive a kill and a power cut: each file or folder is complete or absent.

The content gets a temporary name in the same folder, is flushed to the disk, and is renamed. Then the folder is
flushed, because the new name is an entry of the folder. No other module renames or flushes
(tests/test_import_rules.py).
"""

import errno
import os
from pathlib import Path

from retbench.errors import ResourceError, build_write_error
from retbench.system.file_kinds import require_utf8_path


def create_writable_folder(folder: Path, next_step: str = "name another --out") -> None:
    """Create the folder of results before the work; raise if it cannot be written (by root: on a read-only disk)."""
    try:
        require_utf8_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    except (OSError, RuntimeError) as problem:  # the second of links in a circle
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ResourceError(f"{folder} cannot be written: {reason}", next_step) from problem


def write_file_atomically(file: Path, content: bytes) -> None:
    """Write a file so that it is either complete or absent, even after a crash."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        move_into_place(partial, file)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        next_step = "free disk space (retbench doctor shows it), then run the same command: finished work is kept"
        raise build_write_error(file, problem, next_step) from problem


def move_into_place(finished: Path, target: Path) -> None:
    """Flush a finished file or folder to the disk and rename it. An existing file at the target is replaced."""
    flush_to_disk(finished)
    rename_durably(finished, target)


def rename_durably(path: Path, target: Path) -> None:
    """Rename a file or folder whose content is on the disk already."""
    path.rename(target)
    _flush_entry(target.parent)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder and everything in it."""
    for entry in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _flush_entry(entry)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
