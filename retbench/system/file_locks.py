"""Locks between processes. A process that waits for a long time says which process holds the lock, and what to do.

A stopped process (SIGSTOP, Ctrl-Z) keeps its locks. Without this message the processes that wait for it would look
like a hang.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

SECONDS_BEFORE_MESSAGE = 10.0
HELD_LOCKS = Path("/proc/locks")  # of Linux; elsewhere the holder is not named


@contextmanager
def hold_lock(file: Path) -> Iterator[None]:
    """Hold the lock `file`; wait for it as long as another process holds it, with a message after ten seconds."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SECONDS_BEFORE_MESSAGE)
    except Timeout:
        log.warning("%s", _describe_holder(file))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _describe_holder(file: Path) -> str:
    process = _find_holder(file)
    if process is None:
        return f"waiting for {file}, which another process holds: wait until it has finished, or end it"
    name = f"waiting for {file}, which process {process} holds"
    if _is_stopped(process):
        return f"{name}; that process is stopped: continue it with `kill -CONT {process}`, or end it"
    return f"{name}: wait until it has finished, or end it"


def _find_holder(file: Path) -> int | None:
    """The process that holds the lock; None if the system does not tell it."""
    with suppress(OSError, ValueError):
        inode = str(file.stat().st_ino)
        for line in HELD_LOCKS.read_text().splitlines():
            words = line.split()  # number, kind, mode, access, process, major:minor:inode, start, end
            if "->" not in words and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
                return int(words[4])
    return None


def _is_stopped(process: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False
