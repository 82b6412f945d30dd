"""Search on several GPUs, with CPU threads in their place: the bits of one device, and errors reach the caller."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retbench.errors import DataError
from retbench.retrievers import multi_gpu_search
from retbench.retrievers.exact_search import search_exactly
from retbench.store.shard_store import VectorBlock

QUERIES, DOCUMENTS, WIDTH, BLOCK = 7, 230, 16, 32


@pytest.fixture
def chosen_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The GPUs that threads choose."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def build_blocks(documents: np.ndarray) -> Iterator[VectorBlock]:
    for start in range(0, len(documents), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(documents)))
        yield VectorBlock(rows, documents[rows])


@pytest.mark.parametrize("gpus", [1, 2, 3, 9])
def test_the_number_of_gpus_does_not_change_a_bit(chosen_gpus: list[int], gpus: int) -> None:
    rng = np.random.default_rng(gpus)
    queries, documents = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (QUERIES, DOCUMENTS))
    documents[100:200] = documents[:100]  # ties go to the lower row, which another GPU may have
    expected = search_exactly(queries, build_blocks(documents), 20)
    found = multi_gpu_search.search_on_gpus(queries, build_blocks(documents), 20, gpus)
    for one, other in ((found.rows, expected.rows), (found.scores, expected.scores)):
        assert [values.tobytes() for values in one] == [values.tobytes() for values in other]
    assert sorted(chosen_gpus) == ([] if gpus == 1 else list(range(gpus)))


def test_an_error_of_one_gpu_reaches_the_caller(chosen_gpus: list[int]) -> None:
    documents = np.full((DOCUMENTS, WIDTH), 1e30, dtype=np.float32)
    with pytest.raises(DataError, match="do not fit into float32"):
        multi_gpu_search.search_on_gpus(np.full((2, WIDTH), 1e30, np.float32), build_blocks(documents), 5, 2)


def test_the_gpus_that_embed_also_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_gpu_search.torch, "cuda", SimpleNamespace(device_count=lambda: 4))
    count = multi_gpu_search.count_search_gpus
    assert [count("cuda", 1), count("cuda", 3), count("cuda", 8), count("cpu", 8)] == [1, 3, 4, 1]
