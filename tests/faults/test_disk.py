"""Disks that are full or cannot be written, as small file systems of their own; and a clock that jumps."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import fork_server
from tests.faults.helpers import Make, ended, finish, struck, trained
from tests.test_crash_recovery import TEXTS, kept

pytestmark = pytest.mark.fault

PAGE = 4096  # what a tmpfs gives out at a time


def mounted(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"only root may mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Makes a folder a disk of so many pages, or gives the one that is there another size."""
    made: list[Path] = []

    def sized(folder: Path, pages: int) -> None:
        size = f"size={pages * PAGE}"
        if folder in made:
            mounted("-o", f"remount,{size}", folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        mounted("-t", "tmpfs", "-o", size, "tmpfs", folder)
        made.append(folder)

    yield sized
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that not even root can write."""
    made: list[Path] = []

    def turned(folder: Path) -> None:
        mounted("--bind", folder, folder)
        made.append(folder)
        mounted("-o", "remount,ro,bind", folder)

    yield turned
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("which", ["cache", "out"])
def test_a_disk_that_fills_up_at_any_point_loses_nothing(
    server: fork_server.Server, cell: Make, small_disk: Callable[[Path, int], None], which: str
) -> None:
    wanted, job = finish(server, cell("whole")), cell("full")
    failures, pages, code = 0, 1, 5
    while code:
        small_disk(Path(getattr(job, which)), pages)
        code = ended(server, job)
        if code:
            failures += 1
            assert code == 5, job.said()
            assert "No space left on device" in job.said() or "GB free and this needs" in job.said()
            assert "next:  make room" in job.said() or "next:  free disk space" in job.said()
            assert "Traceback" not in job.said()
            nothing_finished = [file for file in Path(job.out).rglob("record.json") if ".partial" not in str(file)]
            assert nothing_finished == []
        pages += 3
        assert pages < 200
    assert failures > 2  # it was full at several points on the way
    assert kept(job) == wanted
    assert job.computed() <= TEXTS + failures * fork_server.SHARD_ROWS


def test_a_disk_that_fills_up_in_training_keeps_the_last_checkpoint(
    server: fork_server.Server, training: Make, small_disk: Callable[[Path, int], None]
) -> None:
    wanted, job = trained(server, training("whole")), training("full")
    failures, pages, code = 0, 40, 5
    while code:
        small_disk(Path(job.out), pages)
        code = ended(server, job)
        if code:
            failures += 1
            assert code == 5, job.said()
            assert "No space left on device" in job.said()
            assert "Traceback" not in job.said()
            assert not (Path(job.out) / "card.toml").exists()
        pages += 40
        assert pages < 4000
    assert failures > 1
    assert trained(server, job) == wanted


def test_results_that_cannot_be_written_are_refused_before_the_work(
    server: fork_server.Server, cell: Make, read_only: Callable[[Path], None]
) -> None:
    job = cell("shut")
    Path(job.out).mkdir()
    read_only(Path(job.out))
    assert ended(server, job) == 5
    assert f"{job.out} cannot be written: Read-only file system" in job.said()
    assert "next:  name another --out" in job.said()
    assert "Traceback" not in job.said()
    assert job.computed() == 0
    assert finish(server, replace(cell("open"), cache=job.cache)) == finish(server, cell("whole"))


def test_finished_results_are_found_and_reported_where_nothing_can_be_written(
    server: fork_server.Server, cell: Make, read_only: Callable[[Path], None]
) -> None:
    job = cell("done")
    wanted = finish(server, job)
    read_only(Path(job.out))
    assert finish(server, job) == wanted
    assert job.computed() == TEXTS
    assert ended(server, replace(job, argv=("report", job.out))) == 0
    assert "tiny" in job.said()


def test_a_cache_that_cannot_be_written_ends_in_two_lines(
    server: fork_server.Server, cell: Make, read_only: Callable[[Path], None]
) -> None:
    job = cell("shut")
    Path(job.cache).mkdir()
    read_only(Path(job.cache))
    assert ended(server, job) == 5
    assert "Read-only file system" in job.said()
    assert "RETBENCH_CACHE" in job.said()
    assert "Traceback" not in job.said()


def test_a_clock_that_jumps_changes_nothing(server: fork_server.Server, cell: Make) -> None:
    wanted, draw = finish(server, cell("whole")), random.Random("clock")
    moments = cell("counted", phase="embedding").moments(server)
    for seed in range(1, 4):
        job = struck(server, cell(f"jumped{seed}", phase="embedding", clock=seed), moments, draw)
        for file in Path(job.cache).rglob("*"):  # what was written before the jump seems to come from another year
            moment = time.time() + draw.uniform(-1e8, 1e8)
            os.utime(file, (moment, moment))
        assert finish(server, job) == wanted
        assert job.computed() <= TEXTS + fork_server.SHARD_ROWS
        shutil.rmtree(job.out)
        assert finish(server, replace(job, clock=seed + 10)) == wanted
