"""Two and four processes on the same cells, one of them killed; and a worker that runs out of memory."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.cards.method import ROLES
from tests import fork_server
from tests.faults.helpers import (
    MODULE,
    MakeJob,
    assert_results_are_intact,
    hash_stored_bytes,
    run_job,
    run_without_fault,
    use_published_method,
)
from tests.faults.job import FaultJob
from tests.test_crash_recovery import TEXTS, read_results

pytestmark = pytest.mark.fault

MB = 1 << 20


@pytest.fixture(scope="module")
def other_server() -> Iterator[fork_server.ForkServer]:
    with fork_server.start_fork_server(MODULE) as started:
        yield started


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("same_results", [False, True])
def test_a_waiting_process_takes_over_from_a_killed_one(
    server: fork_server.ForkServer, other_server: fork_server.ForkServer, cell: MakeJob, same_results: bool
) -> None:
    expected, first, second = run_without_fault(server, cell("whole")), cell("first", phase="embedding"), cell("second")
    half = cell("counted", phase="embedding").count_moments(server) // 2
    second = replace(second, cache=first.cache, log=first.log, clock_seed=9)  # its clock is over a year off
    if same_results:
        second = replace(second, out=first.out, argv=first.argv)
    process = server.start(replace(first, signal_at=half, signal=signal.SIGSTOP))
    while not is_stopped(process):  # stopped in the middle of its work, holding the lock
        time.sleep(0.01)
    other_server.start(second)
    os.kill(process, signal.SIGKILL)
    assert server.wait_for_exit() == -signal.SIGKILL
    assert other_server.wait_for_exit() == 0
    assert read_results(second) == expected
    assert second.count_computed_texts() <= TEXTS + fork_server.SHARD_ROWS


def test_two_processes_that_finish_one_cell_leave_one_complete_record(
    server: fork_server.ForkServer, other_server: fork_server.ForkServer, cell: MakeJob
) -> None:
    expected, job = run_without_fault(server, cell("whole")), cell("one", delay=0.02)
    server.start(job)
    other_server.start(replace(job, log=f"{job.log}.2"))
    assert (server.wait_for_exit(), other_server.wait_for_exit()) == (0, 0)
    assert read_results(job) == expected
    assert not list(Path(job.out).rglob("*.partial"))


def test_four_processes_on_the_same_cells_compute_every_text_once(
    server: fork_server.ForkServer, cell: MakeJob
) -> None:
    """Three cells, one cache and one results folder, all new; each process begins with another cell."""
    methods = ("mean", "last", "promptreps")

    def make(name: str, first: int, **changes: Any) -> FaultJob:
        job, words = cell(name, delay=0.01, **changes), []
        for number in range(len(methods)):
            words += ["--method", methods[(first + number) % len(methods)]]
        return replace(use_published_method(job), argv=(*use_published_method(job).argv, *words))

    def read(job: FaultJob) -> dict[str, bytes]:
        files = [file for file in Path(job.out).rglob("*") if file.suffix in (".gz", ".parquet")]
        return {file.relative_to(job.out).as_posix(): file.read_bytes() for file in files}

    alone, first = make("alone", 0), make("first", 0)
    assert run_job(server, alone) == 0, alone.read_output()
    four = [replace(make("first", number), log=f"{first.log}.{number}") for number in range(4)]
    for job in four:
        server.start(job)
    assert [server.wait_for_exit() for _ in four] == [0] * 4, [job.read_output() for job in four]
    assert read(first) == read(alone)
    assert len(read(alone)) == 2 * len(methods)
    assert hash_stored_bytes(first) == hash_stored_bytes(alone)
    assert sum(job.count_computed_texts() for job in four) == alone.count_computed_texts()
    assert_results_are_intact(first)
    assert not [*Path(first.out).rglob("*.partial"), *Path(first.cache).rglob("*.partial")]


def test_a_worker_out_of_memory_halves_its_batches_with_the_same_result(
    server: fork_server.ForkServer, cell: MakeJob
) -> None:
    expected = run_without_fault(server, cell("whole"))
    job = cell(
        "short", memory_headroom=900 * MB, bytes_per_text=300 * MB
    )  # one or two texts fit, but not the planned batches
    assert run_job(server, job) == 0, job.read_output()
    assert "out of memory at" in job.read_output()
    actual = read_results(job)
    assert sum(actual["texts"][role].pop("split_batches") for role in ROLES) > 0
    assert [expected["texts"][role].pop("split_batches") for role in ROLES] == [0, 0]
    assert actual == expected


def test_a_worker_without_memory_for_one_text_fails_and_the_next_run_resumes(
    server: fork_server.ForkServer, cell: MakeJob
) -> None:
    expected, job = (
        run_without_fault(server, cell("whole")),
        cell("none", memory_headroom=900 * MB, bytes_per_text=2000 * MB),
    )
    assert run_job(server, job) == 5
    assert "does not fit into memory beside the model" in job.read_output()
    assert "next:  give a smaller --set max_length" in job.read_output()
    assert "Traceback" not in job.read_output()
    assert run_without_fault(server, replace(job, bytes_per_text=0)) == expected
