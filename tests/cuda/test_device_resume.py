"""A killed run on the device gives the same bytes as an uninterrupted one."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fork_server
from tests.test_crash_recovery import TEXTS, read_results, run_to_end, write_collection


@pytest.fixture
def work(model: Path, tmp_path: Path) -> Callable[[str], fork_server.CellRun]:
    task = write_collection(tmp_path / "killed")

    def make(name: str) -> fork_server.CellRun:
        folders = {"out": str(tmp_path / name), "cache": str(tmp_path / f"cache-{name}")}
        facts: dict[str, Any] = {**folders, "log": str(tmp_path / f"{name}.log"), "real": True, "delay": 0.05}
        return fork_server.CellRun(str(model), str(task), **facts)

    return make


def count_probed_texts(device: torch.device) -> int:
    """Count the texts that the memory probe embeds at each start: one and three of the longest, for each role."""
    return 2 * (1 + 3) if device.type == "cuda" else 0


def test_a_killed_run_resumes_to_the_same_result(
    server: fork_server.ForkServer, work: Callable[[str], fork_server.CellRun], device: torch.device
) -> None:
    uninterrupted, killed = work("whole"), work("broken")
    run_to_end(server, uninterrupted)
    assert uninterrupted.count_computed_texts() == TEXTS + count_probed_texts(device)
    for min_texts in (12, 30):
        pid = server.start(killed)
        deadline = time.monotonic() + 30
        while killed.count_computed_texts() < min_texts and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        assert server.wait_for_exit() == -signal.SIGKILL
    run_to_end(server, killed)
    lost_shards = 2 * (2 if device.type == "cuda" else 1)  # two kills; a GPU computes one shard ahead
    most = TEXTS + lost_shards * fork_server.SHARD_ROWS + 2 * 8 + 3 * count_probed_texts(device)
    assert TEXTS <= killed.count_computed_texts() <= most
    assert read_results(killed) == read_results(uninterrupted)
