"""Exact search on the device: the ids of float64, and the same bits for any division into tiles and blocks."""

import numpy as np
import pytest
import torch

from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

ROWS, QUERIES, K = 3000, 70, 20


def draw_unit_vectors(rows: int, width: int, seed: int, shift: float) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32) + np.float32(shift)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def search(queries: np.ndarray, documents: np.ndarray, size: int) -> Ranking:
    blocks = (
        VectorBlock(np.arange(start, min(start + size, ROWS)), documents[start : start + size])
        for start in range(0, ROWS, size)
    )
    return exact_search.search_exactly(queries, blocks, K)


def get_bits(ranking: Ranking, queries: slice = slice(None)) -> list[tuple[bytes, bytes]]:
    pairs = zip(ranking.rows[queries], ranking.scores[queries], strict=True)
    return [(rows.tobytes(), scores.tobytes()) for rows, scores in pairs]


@pytest.mark.parametrize("shift", [0.0, 20.0], ids=["random", "nearly one direction"])
@pytest.mark.parametrize("width", [48, 384, 3584])
def test_ids_equal_float64_and_bits_do_not_depend_on_tiles(
    width: int, shift: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, documents = draw_unit_vectors(QUERIES, width, 1, shift), draw_unit_vectors(ROWS, width, 2, shift)
    untiled = search(queries, documents, ROWS)
    exact_scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    for query, (rows, scores) in enumerate(zip(untiled.rows, untiled.scores, strict=True)):
        assert np.abs(scores - exact_scores[query][rows]).max() < 2e-6
        assert exact_scores[query][rows].min() >= np.sort(exact_scores[query])[-K] - 4e-6
        assert [*zip(-scores, rows, strict=True)] == sorted(zip(-scores, rows, strict=True))
    expected = get_bits(untiled)
    assert get_bits(search(queries, documents, 257)) == expected, "blocks"
    assert get_bits(search(queries[3:8], documents, 512)) == expected[3:8], "few queries, which are not rounded"
    assert get_bits(search(queries[10:50], documents, 512)) == expected[10:50], "other queries beside them"
    monkeypatch.setattr(exact_search, "QUERY_TILE", 24)
    monkeypatch.setattr(exact_search, "WINDOW_ROWS", 700)
    assert get_bits(search(queries, documents, 300)) == expected, "tiles and windows"


def test_equal_scores_are_ordered_by_row(device: torch.device) -> None:
    documents = np.repeat(draw_unit_vectors(1, 384, 2, 0.0), ROWS, axis=0)
    for rows in search(draw_unit_vectors(QUERIES, 384, 1, 0.0), documents, 500).rows:
        assert rows.tolist() == list(range(K))
