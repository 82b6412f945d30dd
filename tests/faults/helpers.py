"""Shared by the fault tests: run a job, inject a fault, and check the results."""

import hashlib
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


def use_published_method(job: FaultJob) -> FaultJob:
    """The job of a model that has a method of its own: without --method."""
    place = job.argv.index("--method")
    return replace(job, argv=(*job.argv[:place], *job.argv[place + 2 :]))


def hash_stored_bytes(job: FaultJob) -> dict[str, str]:
    """The compiled images and the vectors of every shard, by file; their folders are named by their content."""
    files = [file for pattern in ("*.images.arrow", "shard-*.safetensors") for file in Path(job.cache).rglob(pattern)]
    return {
        str(file.relative_to(job.cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if ".partial" not in str(file)
    }


def kill_and_compare_bytes(
    server: fork_server.ForkServer, make: Callable[[str], FaultJob], kills: int, texts: int
) -> dict[str, str]:
    """Kill runs at random moments of their phase, each time one of its own, and let them finish: results and stored
    bytes are those of an undisturbed run, and at most one shard is computed again. Return the checksums of the bytes.
    """
    whole = make("whole")
    expected, rng = run_without_fault(server, whole), random.Random(f"kill {whole.phase}")
    stored, moments = hash_stored_bytes(whole), make("counted").count_moments(server)
    for number in range(kills):
        job = run_until_signal(server, make(f"killed{number}"), moments, rng)
        assert_results_are_intact(job)
        assert run_without_fault(server, job) == expected
        assert hash_stored_bytes(job) == stored
        assert job.count_computed_texts() <= texts + fork_server.SHARD_ROWS
        assert not list(Path(job.out).rglob("*.partial"))
    return stored


def assert_results_are_intact(job: FaultJob) -> None:
    scan = ResultsFolder(Path(job.out)).scan_runs()
    assert scan.problems == []
    assert scan.failures == []
