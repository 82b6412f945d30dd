"""SIGKILL while the token vectors of a late-interaction model are embedded and searched: the same bytes as ever."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server, late_interaction_folders
from tests.faults.helpers import MakeJob, assert_results_are_intact, run_until_signal, run_without_fault
from tests.faults.job import FaultJob
from tests.faults.test_kill_images import hash_stored_bytes
from tests.test_crash_recovery import TEXTS

pytestmark = pytest.mark.fault

KILLS = {"embedding": 4, "scoring": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return late_interaction_folders.build_stanford(tmp_path_factory.mktemp("models") / "colbert")


@pytest.mark.parametrize(("phase", "kills"), KILLS.items(), ids=KILLS)
def test_a_killed_run_of_token_vectors_resumes_to_the_byte(
    server: fork_server.ForkServer, cell: MakeJob, phase: str, kills: int
) -> None:
    def make(name: str, **changes: Any) -> FaultJob:
        job = cell(name, real=True, **changes)
        place = job.argv.index("--method")  # the folder has a method of its own
        return replace(job, argv=(*job.argv[:place], *job.argv[place + 2 :]))

    whole, rng = make("whole"), random.Random(f"kill token vectors {phase}")
    expected, stored = run_without_fault(server, whole), hash_stored_bytes(whole)
    assert len(stored) >= TEXTS // fork_server.SHARD_ROWS
    moments = make("counted", phase=phase).count_moments(server)
    for number in range(kills):
        job = run_until_signal(server, make(f"killed{number}", phase=phase), moments, rng)
        assert_results_are_intact(job)
        assert run_without_fault(server, job) == expected
        assert hash_stored_bytes(job) == stored
        assert job.count_computed_texts() <= TEXTS + fork_server.SHARD_ROWS  # at most one shard was lost
