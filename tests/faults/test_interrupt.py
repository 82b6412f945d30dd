"""Ctrl-C in every phase: exit 130, two words about it, and the next command goes on to the same end."""

import random
import signal
from pathlib import Path

import pytest

from tests import fork_server
from tests.faults.helpers import Make, finish, nothing_wrong_is_kept, struck, trained

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("phase", ["collection", "embedding", "search", "scoring", "record"])
def test_ctrl_c_in_a_run(server: fork_server.Server, cell: Make, phase: str) -> None:
    wanted, draw = finish(server, cell("whole")), random.Random(f"interrupt {phase}")
    moments = cell("counted", phase=phase).moments(server)
    for number in range(3):
        job = struck(server, cell(f"stopped{number}", phase=phase, signal=signal.SIGINT), moments, draw)
        assert "interrupted: finished cells and shards are kept; run the same command to continue" in job.said()
        nothing_wrong_is_kept(job)
        assert finish(server, job) == wanted
        assert not list(Path(job.out).rglob("*.partial"))


@pytest.mark.parametrize("phase", ["training", "checkpoint", "model"])
def test_ctrl_c_in_a_training(server: fork_server.Server, training: Make, phase: str) -> None:
    wanted, draw = trained(server, training("whole")), random.Random(f"interrupt {phase}")
    moments = training("counted", phase=phase).moments(server)
    job = struck(server, training("stopped", phase=phase, signal=signal.SIGINT), moments, draw)
    assert trained(server, job) == wanted
