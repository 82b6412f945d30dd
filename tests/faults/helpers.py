"""Shared by the fault tests: run a job, inject a fault, and check the results."""

import json
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from retbench.records.results_folder import ResultsFolder
from tests import fork_server
from tests.faults.job import FaultJob
from tests.test_crash_recovery import read_results

MODULE = "tests.faults.job"
MakeJob = Callable[..., FaultJob]


def run_job(server: fork_server.ForkServer, job: FaultJob) -> int:
    server.start(job)
    return server.wait_for_exit()


def run_without_fault(server: fork_server.ForkServer, job: FaultJob) -> dict[str, Any]:
    """Run a job without a fault; return its results."""
    healthy = replace(job, phase="", signal_at=None, memory_headroom=0, open_files=0, file_bytes=0)
    assert run_job(server, healthy) == 0, job.read_output()
    return read_results(healthy)


def run_training(server: fork_server.ForkServer, job: FaultJob) -> tuple[bytes, list[tuple[int, float]]]:
    assert run_job(server, replace(job, phase="")) == 0, job.read_output()
    lines = map(json.loads, (Path(job.out) / "metrics.jsonl").read_text().splitlines())
    return (Path(job.out) / "model.safetensors").read_bytes(), [(line["step"], line["loss"]) for line in lines]


def run_until_signal(server: fork_server.ForkServer, job: FaultJob, moments: int, rng: random.Random) -> FaultJob:
    """Run a job until a signal at a random moment of its phase; return the job."""
    hit = replace(job, signal_at=rng.randint(1, moments))
    expected = -signal.SIGKILL if job.signal == signal.SIGKILL else 130
    assert run_job(server, hit) == expected, (hit.signal_at, moments, job.read_output())
    assert "Traceback" not in job.read_output()
    return hit


def assert_results_are_intact(job: FaultJob) -> None:
    scan = ResultsFolder(Path(job.out)).scan_runs()
    assert scan.problems == []
    assert scan.failures == []
