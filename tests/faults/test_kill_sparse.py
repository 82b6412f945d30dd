"""SIGKILL while a learned sparse model (SPLADE) embeds and searches, and while BM25 indexes and searches: the same
bytes as ever. An index of words is kept in memory only, so a killed one is built again."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests import fork_server, late_interaction_folders
from tests.faults.helpers import MakeJob, kill_and_compare_bytes, use_published_method
from tests.faults.job import FaultJob
from tests.test_crash_recovery import TEXTS

pytestmark = pytest.mark.fault

KILLS = {"embedding": 4, "inverted index": 2, "sparse search": 2}
LEXICAL_MODELS = ("bm25", "bm25-lucene")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return late_interaction_folders.build_splade(
        late_interaction_folders.build_bare(folder / "bare"), folder / "splade"
    )


@pytest.mark.parametrize(("phase", "kills"), KILLS.items(), ids=KILLS)
def test_a_killed_run_of_a_sparse_model_resumes_to_the_byte(
    server: fork_server.ForkServer, cell: MakeJob, phase: str, kills: int
) -> None:
    stored = kill_and_compare_bytes(
        server, lambda name: use_published_method(cell(name, real=True, phase=phase)), kills, TEXTS
    )
    assert len(stored) >= TEXTS // fork_server.SHARD_ROWS


@pytest.mark.parametrize("name", LEXICAL_MODELS)
def test_a_killed_run_by_words_gives_the_same_bytes(server: fork_server.ForkServer, cell: MakeJob, name: str) -> None:
    def make(folder: str) -> FaultJob:
        job = cell(folder, phase="retrieval by words")
        return replace(job, argv=("run", "--model", name, "--task", job.task, "--out", job.out))

    assert kill_and_compare_bytes(server, make, 3, 0) == {}
