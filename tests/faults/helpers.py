"""What the fault tests share: running a job, striking it, and what a finished one must leave."""

import json
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from retbench.records.results_folder import ResultsFolder
from tests import fork_server
from tests.faults.job import Job
from tests.test_crash_recovery import kept

MODULE = "tests.faults.job"
Make = Callable[..., Job]


def ended(server: fork_server.Server, job: Job) -> int:
    server.start(job)
    return server.status()


def finish(server: fork_server.Server, job: Job) -> dict[str, Any]:
    """Run it without any fault; what it left."""
    healthy = replace(job, phase="", at=None, room=0)
    assert ended(server, healthy) == 0, job.said()
    return kept(healthy)


def trained(server: fork_server.Server, job: Job) -> tuple[bytes, list[tuple[int, float]]]:
    assert ended(server, replace(job, phase="")) == 0, job.said()
    lines = map(json.loads, (Path(job.out) / "metrics.jsonl").read_text().splitlines())
    return (Path(job.out) / "model.safetensors").read_bytes(), [(line["step"], line["loss"]) for line in lines]


def struck(server: fork_server.Server, job: Job, moments: int, draw: random.Random) -> Job:
    """Run it into its signal at a random moment of its phase; one that came through has passed the moment."""
    hit = replace(job, at=draw.randint(1, moments))
    expected = -signal.SIGKILL if job.signal == signal.SIGKILL else 130
    assert ended(server, hit) == expected, (hit.at, moments, job.said())
    assert "Traceback" not in job.said()
    return hit


def nothing_wrong_is_kept(job: Job) -> None:
    scan = ResultsFolder(Path(job.out)).scan_runs()
    assert scan.problems == []
    assert scan.failures == []
