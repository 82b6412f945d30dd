"""SIGKILL while a collection with images is compiled and while its images are embedded: the same bytes as ever."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server, tiny_vision_models
from tests.faults.helpers import MakeJob, assert_results_are_intact, run_until_signal, run_without_fault
from tests.faults.image_job import write_many
from tests.faults.job import FaultJob

pytestmark = pytest.mark.fault

TEXTS = 20  # 18 documents, 2 judged queries
MOMENTS = {"collection": 4, "embedding": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.build_vision_model(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("tasks") / "pictures")


@pytest.fixture(scope="module")
def server() -> Iterator[fork_server.ForkServer]:
    with fork_server.start_fork_server("tests.faults.image_job") as started:
        yield started


def hash_stored_bytes(job: FaultJob) -> dict[str, str]:
    """The compiled images and the vectors of every shard, by file; their folders are named by their content."""
    files = [file for pattern in ("*.images.arrow", "shard-*.safetensors") for file in Path(job.cache).rglob(pattern)]
    return {
        str(file.relative_to(job.cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if ".partial" not in str(file)
    }


@pytest.mark.parametrize(("phase", "kills"), MOMENTS.items(), ids=MOMENTS)
def test_a_run_on_images_killed_in_any_phase_resumes_to_the_byte(
    server: fork_server.ForkServer, cell: MakeJob, phase: str, kills: int
) -> None:
    def make(name: str, **changes: Any) -> FaultJob:
        job = cell(name, real=True, **changes)
        place = job.argv.index("--method")  # towers have vectors of their own
        return replace(job, argv=(*job.argv[:place], *job.argv[place + 2 :]))

    whole, rng = make("whole"), random.Random(f"kill images {phase}")
    expected, stored = run_without_fault(server, whole), hash_stored_bytes(whole)
    assert len(stored) >= 2 + TEXTS // fork_server.SHARD_ROWS  # both files of images, and several shards
    moments = make("counted", phase=phase).count_moments(server)
    for number in range(kills):
        job = run_until_signal(server, make(f"killed{number}", phase=phase), moments, rng)
        assert_results_are_intact(job)
        assert run_without_fault(server, job) == expected
        assert hash_stored_bytes(job) == stored
        assert job.count_computed_texts() <= TEXTS + fork_server.SHARD_ROWS  # at most one shard was lost
