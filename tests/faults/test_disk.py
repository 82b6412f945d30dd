"""Full and read-only disks, as small file systems; and a jumping clock."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from tests import fork_server
from tests.faults.helpers import MakeJob, run_job, run_training, run_until_signal, run_without_fault
from tests.faults.job import YEAR
from tests.test_crash_recovery import TEXTS, read_results

pytestmark = pytest.mark.fault

MountSmallDisk = Callable[[Path, int], None]
PAGE = 4096  # the allocation unit of tmpfs, in bytes


def run_mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"only root may mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Return a function that mounts a tmpfs of a number of pages on a folder, or resizes it."""
    mounted: list[Path] = []

    def mount_small_disk(folder: Path, pages: int) -> None:
        size = f"size={pages * PAGE}"
        if folder in mounted:
            run_mount("-o", f"remount,{size}", folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        run_mount("-t", "tmpfs", "-o", size, "tmpfs", folder)
        mounted.append(folder)

    yield mount_small_disk
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Return a function that remounts a folder read-only, also for root."""
    mounted: list[Path] = []

    def mount_read_only(folder: Path) -> None:
        run_mount("--bind", folder, folder)
        mounted.append(folder)
        run_mount("-o", "remount,ro,bind", folder)

    yield mount_read_only
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("full_folder", ["cache", "out"])
def test_a_full_disk_at_any_point_loses_nothing(
    server: fork_server.ForkServer, cell: MakeJob, small_disk: Callable[[Path, int], None], full_folder: str
) -> None:
    expected, job = run_without_fault(server, cell("whole")), cell("full")
    failures, pages, code = 0, 1, 5
    while code:
        small_disk(Path(getattr(job, full_folder)), pages)
        code = run_job(server, job)
        if code:
            failures += 1
            assert code == 5, job.read_output()
            assert "No space left on device" in job.read_output() or "GB free and this needs" in job.read_output()
            assert "next:  make room" in job.read_output() or "next:  free disk space" in job.read_output()
            assert "Traceback" not in job.read_output()
            nothing_finished = [file for file in Path(job.out).rglob("record.json") if ".partial" not in str(file)]
            assert nothing_finished == []
        pages += 3
        assert pages < 200
    assert failures > 2  # the disk was full at several points of the run
    assert read_results(job) == expected
    assert job.count_computed_texts() <= TEXTS + failures * fork_server.SHARD_ROWS


def test_a_full_disk_in_training_keeps_the_last_checkpoint(
    server: fork_server.ForkServer, training: MakeJob, small_disk: Callable[[Path, int], None]
) -> None:
    expected, job = run_training(server, training("whole")), training("full")
    failures, pages, code = 0, 40, 5
    while code:
        small_disk(Path(job.out), pages)
        code = run_job(server, job)
        if code:
            failures += 1
            assert code == 5, job.read_output()
            assert "No space left on device" in job.read_output()
            assert "Traceback" not in job.read_output()
            assert not (Path(job.out) / "card.toml").exists()
        pages += 40
        assert pages < 4000
    assert failures > 1
    assert run_training(server, job) == expected


def test_a_read_only_results_folder_is_refused_before_the_run(
    server: fork_server.ForkServer, cell: MakeJob, read_only: Callable[[Path], None]
) -> None:
    job = cell("shut")
    Path(job.out).mkdir()
    read_only(Path(job.out))
    assert run_job(server, job) == 5
    assert f"{job.out} cannot be written: Read-only file system" in job.read_output()
    assert "next:  name another --out" in job.read_output()
    assert "Traceback" not in job.read_output()
    assert job.count_computed_texts() == 0
    assert run_without_fault(server, replace(cell("open"), cache=job.cache)) == run_without_fault(server, cell("whole"))


def test_finished_results_are_reported_from_a_read_only_folder(
    server: fork_server.ForkServer, cell: MakeJob, read_only: Callable[[Path], None]
) -> None:
    job = cell("done")
    expected = run_without_fault(server, job)
    read_only(Path(job.out))
    assert run_without_fault(server, job) == expected
    assert job.count_computed_texts() == TEXTS
    assert run_job(server, replace(job, argv=("report", job.out))) == 0
    assert "tiny" in job.read_output()


def test_a_read_only_cache_is_a_two_line_error(
    server: fork_server.ForkServer, cell: MakeJob, read_only: Callable[[Path], None]
) -> None:
    job = cell("shut")
    Path(job.cache).mkdir()
    read_only(Path(job.cache))
    assert run_job(server, job) == 5
    assert "Read-only file system" in job.read_output()
    assert "RETBENCH_CACHE" in job.read_output()
    assert "Traceback" not in job.read_output()


def test_a_jumping_clock_changes_nothing(server: fork_server.ForkServer, cell: MakeJob) -> None:
    expected, rng = run_without_fault(server, cell("whole")), random.Random("clock")
    moments = cell("counted", phase="embedding").count_moments(server)
    for seed in range(1, 4):
        job = run_until_signal(server, cell(f"jumped{seed}", phase="embedding", clock_seed=seed), moments, rng)
        for file in Path(job.cache).rglob("*"):  # files get dates of other years
            moment = time.time() + rng.uniform(-1e8, 1e8)
            os.utime(file, (moment, moment))
        assert run_without_fault(server, job) == expected
        assert job.count_computed_texts() <= TEXTS + fork_server.SHARD_ROWS
        shutil.rmtree(job.out)
        assert run_without_fault(server, replace(job, clock_seed=seed + 10)) == expected
        (record,) = Path(job.out).rglob("record.json")
        created = datetime.fromisoformat(json.loads(record.read_text())["created"]).timestamp()
        assert YEAR - 60 <= abs(time.time() - created) <= 2 * YEAR + 60  # the clock of the run was wrong by that
        assert run_job(server, replace(job, argv=("report", job.out), clock_seed=seed + 20)) == 0
        assert "tiny" in job.read_output()
