"""Search on the device: exact search gives the ids of float64, and the same bits however it is divided into tiles.

Late interaction and compressed search equal plain sums.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from retbench.cards.ann_settings import CompressedType
from retbench.retrievers import exact_search, multi_gpu_search
from retbench.retrievers.compressed_search import CompressedSearch, compress_vectors
from retbench.retrievers.max_sim_search import MaxSimSearch
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

ROWS, QUERIES, K = 3000, 70, 20


def draw_unit_vectors(rows: int, width: int, seed: int, shift: float) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32) + np.float32(shift)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def build_blocks(documents: np.ndarray, size: int) -> Iterator[VectorBlock]:
    for start in range(0, ROWS, size):
        yield VectorBlock(np.arange(start, min(start + size, ROWS)), documents[start : start + size])


def search(queries: np.ndarray, documents: np.ndarray, size: int) -> Ranking:
    return exact_search.search_exactly(queries, build_blocks(documents, size), K)


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
    monkeypatch.setattr(multi_gpu_search.torch.cuda, "set_device", lambda _: None)  # both threads use this GPU
    assert get_bits(multi_gpu_search.search_on_gpus(queries, build_blocks(documents, 257), K, 2)) == expected, "threads"
    assert get_bits(search(queries[10:50], documents, 512)) == expected[10:50], "other queries beside them"
    monkeypatch.setattr(exact_search, "QUERY_TILE", 24)
    monkeypatch.setattr(exact_search, "WINDOW_ROWS", 700)
    assert get_bits(search(queries, documents, 300)) == expected, "tiles and windows"


def test_equal_scores_are_ordered_by_row(device: torch.device) -> None:
    documents = np.repeat(draw_unit_vectors(1, 384, 2, 0.0), ROWS, axis=0)
    for rows in search(draw_unit_vectors(QUERIES, 384, 1, 0.0), documents, 500).rows:
        assert rows.tolist() == list(range(K))


def test_late_interaction_equals_float64(device: torch.device) -> None:
    draw, width = np.random.default_rng(4), 32
    blocks = [draw_token_vectors(draw, count, width) for count in (9, 60, 40)]
    queries, documents = blocks[0], blocks[1:]
    documents[1] = documents[1]._replace(rows=documents[1].rows + 60)
    search = MaxSimSearch([queries], 10)
    for block in documents:
        search.add_block(block)
    ranking = search.finish()
    for query, vectors in enumerate(split_texts(queries)):
        scores = [
            (vectors.astype(np.float64) @ text.astype(np.float64).T).max(axis=1).sum()
            for block in documents for text in split_texts(block)
        ]  # fmt: skip
        assert ranking.rows[query].tolist() == np.argsort(-np.array(scores), kind="stable")[:10].tolist()
        assert np.abs(ranking.scores[query] - np.sort(scores)[::-1][:10]).max() < 1e-4


def draw_token_vectors(draw: np.random.Generator, texts: int, width: int) -> VectorBlock:
    offsets = np.concatenate(([0], np.cumsum(draw.integers(1, 9, texts))))
    vectors = draw.standard_normal((offsets[-1], width), dtype=np.float32)
    return VectorBlock(np.arange(texts), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), offsets)


def split_texts(block: VectorBlock) -> list[np.ndarray]:
    return np.split(block.vectors, block.get_offsets()[1:-1])


@pytest.mark.parametrize("name", ["int8", "binary"])
@pytest.mark.parametrize("width", [48, 384])
def test_compressed_search_equals_sums_of_integers(name: CompressedType, width: int, device: torch.device) -> None:
    queries, documents = draw_unit_vectors(QUERIES, width, 1, 0.0), draw_unit_vectors(ROWS, width, 2, 0.0)
    search = CompressedSearch(name, queries, K)
    search.add_block(VectorBlock(np.arange(ROWS), documents))
    ranking = search.finish()
    cpu = torch.device("cpu")
    one, other = compress_vectors(queries, name), compress_vectors(documents, name)
    sums = one.unpack(cpu).numpy().astype(np.int64) @ other.unpack(cpu).numpy().astype(np.int64).T
    scales = other.get_scales(cpu).numpy() if name == "int8" else np.ones(ROWS, dtype=np.float32)
    scores = sums.astype(np.float32) * scales
    for query in range(QUERIES):
        expected = np.lexsort((np.arange(ROWS), -scores[query]))[:K]
        assert ranking.rows[query].tolist() == expected.tolist()
