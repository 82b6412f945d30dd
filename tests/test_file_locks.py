"""Locks between processes: a waiter names the process that holds the lock, also when that process is stopped."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from retbench.system import file_locks
from retbench.system.file_locks import hold_lock

HOLD = """
from filelock import FileLock
with FileLock(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until its input ends."""
    monkeypatch.setattr(file_locks, "SECONDS_BEFORE_MESSAGE", 0.01)
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path}\n{HOLD}", str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def wait_for_lock(
    file: Path, holder: "subprocess.Popen[str]", caplog: pytest.LogCaptureFixture, release: int | None
) -> str:
    """Wait for the lock in a thread until the message is there, then end the holder. Returns the message."""
    is_held = threading.Event()

    def wait() -> None:
        with hold_lock(file):
            is_held.set()

    with caplog.at_level(logging.WARNING, "retbench"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not caplog.messages:
            waiter.join(0.01)
        assert not is_held.is_set()
        if release is not None:
            holder.send_signal(release)
        assert holder.stdin is not None
        holder.stdin.close()
        waiter.join()
    assert is_held.is_set()
    return caplog.messages[0]


@pytest.mark.skipif(not file_locks.HELD_LOCKS.exists(), reason="only Linux tells which process holds a lock")
def test_a_waiter_names_the_holder(
    holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = wait_for_lock(tmp_path / "lock", holder, caplog, None)
    assert message.endswith(f"which process {holder.pid} holds: wait until it has finished, or end it")


@pytest.mark.skipif(not file_locks.HELD_LOCKS.exists(), reason="only Linux tells which process holds a lock")
def test_a_waiter_says_that_the_holder_is_stopped(
    holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    message = wait_for_lock(tmp_path / "lock", holder, caplog, signal.SIGCONT)
    assert f"process {holder.pid} holds; that process is stopped: continue it with `kill -CONT {holder.pid}`" in message


def test_without_a_list_of_locks_the_waiter_says_so_in_general(
    holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks, "HELD_LOCKS", tmp_path / "none")
    assert "which another process holds: wait" in wait_for_lock(tmp_path / "lock", holder, caplog, None)


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), hold_lock(tmp_path / "lock"):
            raise KeyError
