"""What the fault tests share: cells to be run, and what a finished one must leave however it was interrupted."""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.records.ledger import Ledger
from tests import fake
from tests.faults.job import Job
from tests.test_lost import TEXTS, kept, model, task  # noqa: F401  # fixtures

MODULE = "tests.faults.job"
Make = Callable[..., Job]


@pytest.fixture(scope="module")
def server() -> Iterator[fake.Server]:
    with fake.server(MODULE) as started:
        yield started


@pytest.fixture
def cell(model: Path, task: Path, tmp_path: Path) -> Make:  # noqa: F811
    """Jobs of one cell, each with a results folder and a cache of its own."""

    def make(name: str, **changes: Any) -> Job:
        out, cache, log = (str(tmp_path / f"{name}{end}") for end in ("", "-cache", ".log"))
        argv = ("run", "--model", str(model), "--task", str(task), "--method", "mean", "--out", out)
        return replace(Job(str(model), str(task), out, cache, log, delay=0.0, argv=argv), **changes)

    return make


def ended(server: fake.Server, job: Job) -> int:
    server.start(job)
    return server.status()


def finish(server: fake.Server, job: Job) -> dict[str, Any]:
    """Run it without any fault; what it left."""
    healthy = replace(job, phase="", at=None, room=0)
    assert ended(server, healthy) == 0, job.said()
    return kept(healthy)


def struck(server: fake.Server, job: Job, moments: int, draw: random.Random) -> Job:
    """Run it into its signal at a random moment of its phase; one that came through has passed the moment."""
    hit = replace(job, at=draw.randint(1, moments))
    expected = -signal.SIGKILL if job.signal == signal.SIGKILL else 130
    assert ended(server, hit) == expected, (hit.at, moments, job.said())
    assert "Traceback" not in job.said()
    return hit


def nothing_wrong_is_kept(job: Job) -> None:
    scan = Ledger(Path(job.out)).scan()
    assert scan.problems == []
    assert scan.failures == []
