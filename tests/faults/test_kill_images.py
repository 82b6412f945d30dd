"""SIGKILL while a collection with images is compiled and while its images are embedded: the same bytes as ever."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fork_server, tiny_vision_models
from tests.faults.helpers import MakeJob, kill_and_compare_bytes, use_published_method
from tests.faults.image_job import write_many

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


@pytest.mark.parametrize(("phase", "kills"), MOMENTS.items(), ids=MOMENTS)
def test_a_run_on_images_killed_in_any_phase_resumes_to_the_byte(
    server: fork_server.ForkServer, cell: MakeJob, phase: str, kills: int
) -> None:
    stored = kill_and_compare_bytes(
        server, lambda name: use_published_method(cell(name, real=True, phase=phase)), kills, TEXTS
    )
    assert len(stored) >= 2 + TEXTS // fork_server.SHARD_ROWS  # both files of images, and several shards
