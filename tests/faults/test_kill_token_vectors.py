"""SIGKILL while the token vectors of a late-interaction model are embedded and searched: the same bytes as ever."""

from pathlib import Path

import pytest

from tests import fork_server, late_interaction_folders
from tests.faults.helpers import MakeJob, kill_and_compare_bytes, use_published_method
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
    stored = kill_and_compare_bytes(
        server, lambda name: use_published_method(cell(name, real=True, phase=phase)), kills, TEXTS
    )
    assert len(stored) >= TEXTS // fork_server.SHARD_ROWS
