"""Ctrl-C in every phase: exit 130, a short message, and the next command resumes to the same result."""

import random
import signal
from pathlib import Path

import pytest

from tests import fork_server
from tests.faults.helpers import MakeJob, assert_results_are_intact, run_training, run_until_signal, run_without_fault

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("phase", ["collection", "embedding", "search", "scoring", "record"])
def test_ctrl_c_in_a_run_exits_with_130_and_the_run_resumes(
    server: fork_server.ForkServer, cell: MakeJob, phase: str
) -> None:
    expected, rng = run_without_fault(server, cell("whole")), random.Random(f"interrupt {phase}")
    moments = cell("counted", phase=phase).count_moments(server)
    for number in range(3):
        job = run_until_signal(server, cell(f"stopped{number}", phase=phase, signal=signal.SIGINT), moments, rng)
        assert "interrupted: finished cells and shards are kept; run the same command to continue" in job.read_output()
        assert_results_are_intact(job)
        assert run_without_fault(server, job) == expected
        assert not list(Path(job.out).rglob("*.partial"))


@pytest.mark.parametrize("phase", ["training", "checkpoint", "model"])
def test_ctrl_c_in_a_training_exits_with_130_and_the_training_resumes(
    server: fork_server.ForkServer, training: MakeJob, phase: str
) -> None:
    expected, rng = run_training(server, training("whole")), random.Random(f"interrupt {phase}")
    moments = training("counted", phase=phase).count_moments(server)
    job = run_until_signal(server, training("stopped", phase=phase, signal=signal.SIGINT), moments, rng)
    assert run_training(server, job) == expected
