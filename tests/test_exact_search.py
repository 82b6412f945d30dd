"""Exact search against brute force with many ties, BM25 by hand, and documents removed before the cutoff."""

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.cards.model import LexicalSettings
from retbench.corpora.collection import Collection, load_collection
from retbench.corpora.collection_cache import compile_collection
from retbench.corpora.open_collection import open_collection
from retbench.corpora.rows import Exclusion, Judgment, RawCollection, TextRow
from retbench.corpora.texts import join_fields
from retbench.engines import memory
from retbench.retrievers import exact_search
from retbench.retrievers.bm25 import BM25Index
from retbench.retrievers.ranking import Ranking, select_top_k
from retbench.store.shard_store import ShardStore, VectorBlock
from tests import small_collection


class Case(NamedTuple):
    """Vectors of small whole numbers: sums are exact in any order, and there are many ties."""

    queries: np.ndarray
    documents: np.ndarray
    blocks: list[VectorBlock]
    k: int
    query_tile: int
    document_tile: int


@st.composite
def draw_case(draw: st.DrawFn) -> Case:
    width = draw(st.integers(1, 3))
    sizes = draw(st.tuples(st.integers(1, 7), st.integers(0, 30)))
    queries, documents = (
        np.array(draw(st.lists(st.lists(st.integers(-1, 1), min_size=width, max_size=width), min_size=n, max_size=n)))
        .reshape(n, width)
        .astype(np.float32)
        for n in sizes
    )
    order = np.array(draw(st.permutations(range(sizes[1]))), dtype=np.int64)
    cuts = sorted(draw(st.lists(st.integers(0, sizes[1]), max_size=4)))
    parts = [order[start:end] for start, end in pairwise([0, *cuts, sizes[1]])]
    tiles = st.integers(1, 9)
    blocks = [VectorBlock(rows, documents[rows]) for rows in parts]
    return Case(queries, documents, blocks, draw(st.integers(1, 35)), draw(tiles), draw(tiles))


def search_by_brute_force(queries: np.ndarray, documents: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """Sort all documents of every query, as a simple reference."""
    ranking = []
    for query in queries:
        scores = [float(sum(query * document)) for document in documents]
        ranking.append(sorted(enumerate(scores), key=lambda hit: (-hit[1], hit[0]))[:k])
    return ranking


def list_hits(ranking: Ranking) -> list[list[tuple[int, float]]]:
    return [
        [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
        for rows, scores in zip(ranking.rows, ranking.scores, strict=True)
    ]


@given(draw_case())
def test_exact_search_equals_brute_force_for_any_tiles_and_blocks(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "QUERY_TILE", case.query_tile)
        patch.setattr(exact_search, "DOCUMENT_TILE", case.document_tile)
        ranking = exact_search.search_exactly(case.queries, case.blocks, case.k)
    assert list_hits(ranking) == search_by_brute_force(case.queries, case.documents, case.k)


def test_equal_scores_rank_the_first_rows() -> None:
    vectors = np.ones((50, 2), dtype=np.float32)
    blocks = [VectorBlock(np.arange(start, 50, 3)[::-1].copy(), vectors[start::3]) for start in (2, 0, 1)]
    assert exact_search.search_exactly(vectors[:1], blocks, 10).rows[0].tolist() == list(range(10))


def test_a_corpus_smaller_than_k_is_ranked_whole() -> None:
    vectors = np.array([[1, 0], [0, 1]], dtype=np.float32)
    ranking = exact_search.search_exactly(vectors, [VectorBlock(np.array([1, 0]), vectors[::-1].copy())], 100)
    assert list_hits(ranking) == [[(0, 1.0), (1, 0.0)], [(1, 1.0), (0, 0.0)]]


def test_blocks_from_the_store_are_searched(tmp_path: Path) -> None:
    store, vectors = ShardStore(tmp_path), np.eye(4, dtype=np.float32)
    for shard in range(2):
        rows = np.arange(shard, 4, 2)
        store.write_shard(shard, VectorBlock(rows, vectors[rows]), tokens=1, seconds=0.0)
    blocks = [block for shard in range(2) if (block := store.read_shard(shard))]
    assert [rows[0] for rows in exact_search.search_exactly(vectors, blocks, 1).rows] == [0, 1, 2, 3]


def test_scores_are_summed_in_float32() -> None:
    small_part = np.float32(2**-12)  # rounded away in bfloat16 and in float16
    vectors = np.array([[1, small_part], [1, 0]], dtype=np.float32)
    ranking = exact_search.search_exactly(np.array([[1, 1]], dtype=np.float32), [VectorBlock(np.arange(2), vectors)], 2)
    assert list_hits(ranking) == [[(0, 1.000244140625), (1, 1.0)]]


# The low-precision pass only selects candidates; ids and scores are those of float32


def draw_unit_vectors(rows: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw unit vectors; with `shift` all are close to one direction, as in an untrained decoder."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width)) + shift
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def split_into_blocks(vectors: np.ndarray, size: int) -> list[VectorBlock]:
    order = np.random.default_rng(0).permutation(len(vectors))
    return [VectorBlock(order[at : at + size], vectors[order[at : at + size]]) for at in range(0, len(vectors), size)]


@pytest.fixture
def search_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ranking]:
    def search(queries: np.ndarray, documents: np.ndarray, k: int, bf16: bool = True, window: int = 700) -> Ranking:
        monkeypatch.setattr(exact_search, "has_fast_bf16", lambda: bf16)
        monkeypatch.setattr(exact_search, "MIN_QUERIES_FOR_ROUNDING", 1)
        monkeypatch.setattr(exact_search, "QUERY_TILE", 24)
        monkeypatch.setattr(exact_search, "DOCUMENT_TILE", 128)
        monkeypatch.setattr(exact_search, "WINDOW_ROWS", window)
        return exact_search.search_exactly(queries, split_into_blocks(documents, 300), k)

    return search


VECTORS = {
    "random": (draw_unit_vectors(40, 48, 1), draw_unit_vectors(2000, 48, 2)),
    "nearly one direction": (draw_unit_vectors(40, 48, 1, 20.0), draw_unit_vectors(2000, 48, 2, 20.0)),
    "every document three times": (draw_unit_vectors(40, 48, 1), np.repeat(draw_unit_vectors(700, 48, 2), 3, axis=0)),
    "of any length": (
        37 * draw_unit_vectors(40, 48, 1),
        np.logspace(-3, 3, 2000, dtype=np.float32)[:, None] * draw_unit_vectors(2000, 48, 2),
    ),
    "all alike": (draw_unit_vectors(40, 48, 1), np.repeat(draw_unit_vectors(1, 48, 2), 2000, axis=0)),
    "zeros": (draw_unit_vectors(40, 48, 1), np.zeros((2000, 48), dtype=np.float32)),
}


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize(("queries", "documents"), VECTORS.values(), ids=VECTORS)
def test_bfloat16_and_tiles_do_not_change_ids_or_scores(
    search_with: Callable[..., Ranking], queries: np.ndarray, documents: np.ndarray, k: int
) -> None:
    reference = search_with(queries, documents, k, bf16=False, window=1 << 15)
    assert list_hits(search_with(queries, documents, k)) == list_hits(reference)
    exact_scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    for query, (rows, scores) in enumerate(zip(reference.rows, reference.scores, strict=True)):
        slack = 1e-6 * np.linalg.norm(queries[query]) * np.linalg.norm(documents, axis=1).max()
        assert np.abs(scores - exact_scores[query][rows]).max() <= slack
        assert exact_scores[query][rows].min() >= np.sort(exact_scores[query])[-k] - 2 * slack
        assert [*zip(-scores, rows, strict=True)] == sorted(zip(-scores, rows, strict=True))


def test_bfloat16_without_rescoring_would_give_other_ids() -> None:
    """Show that the test above can fail."""
    queries, documents = (torch.from_numpy(side) for side in VECTORS["nearly one direction"])
    rounded = (queries.bfloat16() @ documents.bfloat16().T).topk(10).indices.sort().values
    assert not torch.equal(rounded, (queries @ documents.T).topk(10).indices.sort().values)


def test_a_window_with_many_candidates_is_scored_in_float32(
    search_with: Callable[..., Ranking], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[torch.dtype] = []
    candidates = exact_search.RunningTopK._find_candidates

    def told(top: exact_search.RunningTopK, window: exact_search.DocumentWindow) -> exact_search.CandidatePairs:
        passes.append(window.tiles[0].dtype)
        return candidates(top, window)

    monkeypatch.setattr(exact_search.RunningTopK, "_find_candidates", told)
    search_with(*VECTORS["nearly one direction"], 10)
    assert torch.float32 in passes
    passes.clear()
    search_with(*VECTORS["random"], 10)
    assert set(passes) == {torch.bfloat16}


def test_pairs_have_the_same_scores_without_a_special_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the path of a GPU on the CPU."""
    monkeypatch.setattr(exact_search, "PAIRS_PER_PRODUCT", 7)
    queries, documents = (torch.from_numpy(side) for side in VECTORS["random"])
    positions, owners = torch.arange(0, 2000, 10), torch.arange(200) % 40
    expected = (documents.double() @ queries.double().T)[positions, owners]
    for products in (exact_search.multiply_gathered, exact_search.multiply_sampled):
        torch.testing.assert_close(
            products(documents, queries, positions, owners).double(), expected, rtol=0, atol=1e-6
        )


MANY_QUERIES_PROGRAM = """
import numpy as np
from retbench.engines.memory import get_peak_memory_mb
from retbench.retrievers.exact_search import search_exactly
from retbench.store.shard_store import VectorBlock

draw = np.random.default_rng(0)
queries = draw.standard_normal((20_000, 16), dtype=np.float32)
blocks = lambda: (VectorBlock(np.arange(at, at + 2000), draw.standard_normal((2000, 16), dtype=np.float32))
                  for at in range(0, 10_000, 2000))
search_exactly(queries[:600], blocks(), 10)  # what torch takes at its first use
before = get_peak_memory_mb()
found = search_exactly(queries, blocks(), 10)
assert len(found.rows) == 20_000
print(get_peak_memory_mb() - before)
"""


def test_memory_does_not_grow_with_queries_times_documents() -> None:
    process = subprocess.run([sys.executable, "-c", MANY_QUERIES_PROGRAM], capture_output=True, text=True, check=True)
    assert float(process.stdout) < 300  # all scores together would take 800 MB


LARGE_STORE_PROGRAM = """
import os, sys
import numpy as np
from pathlib import Path
from retbench.engines.memory import get_peak_memory_mb
from retbench.engines import memory
from retbench.retrievers import exact_search
from retbench.store.shard_store import ShardStore, VectorBlock

os.fsync = lambda _: None  # a crash is not what is tried here
exact_search.WINDOW_ROWS = 2048  # a window and its scores are then a few megabytes
store, draw, shards = ShardStore(Path(sys.argv[1])), np.random.default_rng(0), 80
queries = draw.standard_normal((100, 512), dtype=np.float32)
for shard in range(shards):
    vectors = draw.standard_normal((1024, 512), dtype=np.float32)
    store.write_shard(shard, VectorBlock(np.arange(1024) * shards + shard, vectors), tokens=1, seconds=0.0)
exact_search.search_exactly(queries, [store.read_shard(0)], 10)  # what torch takes at its first use
before = get_peak_memory_mb()
found = exact_search.search_exactly(queries, (store.read_shard(shard) for shard in range(shards)), 10)
assert len({int(row) % shards for rows in found.rows for row in rows}) > shards / 2  # from all over the shards
print(get_peak_memory_mb() - before)
"""


def test_between_windows_a_query_keeps_only_k_keys() -> None:
    vectors = torch.from_numpy(np.random.default_rng(5).standard_normal((400, 8), dtype=np.float32))
    top = exact_search.RunningTopK(vectors[:64], 10)
    top.add_window(exact_search.DocumentWindow.build([torch.arange(400)], [vectors], torch.float32))
    assert top.keys.untyped_storage().nbytes() == 64 * 10 * 8


def test_stored_vectors_are_streamed(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LARGE_STORE_PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) > 160e6
    assert float(process.stdout) < 60


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.integers(1, 35))
def test_select_top_k_cuts_a_row_of_scores(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:k]
    assert select_top_k(np.array(scores, dtype=np.float32), k).tolist() == expected


# BM25


def test_bm25_computed_by_hand() -> None:
    # Three documents of 2, 2 and 4 words; the query is "cat"; idf and length normalisation as in Lucene.
    documents = ["cat dog", "bird dog", "cat cat cat fish"]
    ranking = BM25Index(LexicalSettings(k1=1.2, b=0.75), documents).search(["cat"], 10)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def weight(count: int, length: int) -> float:
        return idf * count / (count + 1.2 * (1 - 0.75 + 0.75 * length / (8 / 3)))

    assert ranking.rows[0].tolist() == [2, 0]
    assert ranking.scores[0].tolist() == pytest.approx([weight(3, 4), weight(1, 2)], rel=1e-6)


# (query, expected documents of: 0 "The cats are running", 1 "a dog", 2 "The runner has a cat", 3 "", 4 "cat dog")
BM25_QUERIES = {
    "words are stemmed": ("cat runs", {0, 2, 4}),
    "case does not matter": ("DOG", {1, 4}),
    "an unknown word beside a known one": ("zebra dog", {1, 4}),
    "unknown words only": ("zebra quagga", set()),
    "stop words only": ("the a are", set()),
    "nothing": ("", set()),
    "signs only": ("?! ...", set()),
}


@pytest.mark.parametrize("variant", ["lucene", "atire"])
@pytest.mark.parametrize(("query", "expected"), BM25_QUERIES.values(), ids=BM25_QUERIES)
def test_bm25_finds_only_documents_with_a_query_word(query: str, expected: set[int], variant: str) -> None:
    documents = ["The cats are running", "a dog", "The runner has a cat", "", "cat dog"]
    index = BM25Index(LexicalSettings(variant=variant), documents)  # type: ignore[arg-type]
    (rows,) = index.search([query], 10).rows
    assert set(rows.tolist()) == expected
    assert len(rows) == len(expected)


def test_bm25_orders_ties_by_row() -> None:
    ranking = BM25Index(LexicalSettings(), ["cat", "dog", "cat", "cat", "bird"]).search(["cat", "dog", "cat"], 2)
    assert [rows.tolist() for rows in ranking.rows] == [[0, 2], [1], [0, 2]]


def test_bm25_on_the_small_collection(tmp_path: Path) -> None:
    collection = open_collection(small_collection.build_card(small_collection.write_folder(tmp_path / "small")))
    index = BM25Index(LexicalSettings(), (join_fields(row, ("title", "text")) for row in collection.corpus))
    named = index.search((row.text for row in collection.queries), 3).to_document_ids(collection)
    assert named["q2"][0] == "bicycle"
    assert named["q3"][0] == "river"
    assert set(named["q1"]) <= {"coffee", "tea"}
    assert list(named) == ["q1", "q2", "q3"]


# Excluded documents are removed before the cutoff


@pytest.fixture
def collection_factory(tmp_path: Path) -> Callable[[bool], Collection]:
    """A collection in which queries a and b are documents too, and d is excluded for b."""
    documents = [TextRow(name, "", f"text {name}") for name in "abcd"]
    judgments = [Judgment("a", "b", 1), Judgment("b", "a", 1)]
    raw = RawCollection(
        documents, [TextRow("a", "", "x"), TextRow("b", "", "y")], {"test": judgments}, [Exclusion("b", "d")]
    )
    compile_collection(raw, tmp_path / "twins")
    return lambda excluded: load_collection(tmp_path / "twins", "test", excluded=excluded)


RANKED = Ranking(
    [np.array([0, 1, 2, 3]), np.array([3, 0, 1])],
    [np.array([4.0, 3.0, 2.0, 1.0], dtype=np.float32), np.array([3.0, 2.0, 1.0], dtype=np.float32)],
)
# (drop the query's own id, apply exclusions, depth, remaining documents)
CUTS = {
    "everything": (False, False, 10, {"a": "abcd", "b": "dab"}),
    "cut": (False, False, 2, {"a": "ab", "b": "da"}),
    "own id goes before the cut": (True, False, 2, {"a": "bc", "b": "da"}),
    "an excluded document goes before the cut": (False, True, 2, {"a": "ab", "b": "ab"}),
    "both": (True, True, 2, {"a": "bc", "b": "a"}),
}


@pytest.mark.parametrize(("drop", "excluded", "depth", "remaining"), CUTS.values(), ids=CUTS)
def test_excluded_documents_are_removed_before_the_cutoff(
    collection_factory: Callable[[bool], Collection], drop: bool, excluded: bool, depth: int, remaining: dict[str, str]
) -> None:
    collection = collection_factory(excluded)
    ranking = RANKED.filter_and_cut(collection, drop_same_id=drop, depth=depth)
    assert {query: "".join(documents) for query, documents in ranking.to_document_ids(collection).items()} == remaining
    assert [len(scores) for scores in ranking.scores] == [len(rows) for rows in ranking.rows]
    for rows, scores, all_rows, all_scores in zip(
        ranking.rows, ranking.scores, RANKED.rows, RANKED.scores, strict=True
    ):  # every document keeps its score
        assert [all_scores[list(all_rows).index(row)] for row in rows] == list(scores)


def test_an_empty_ranking_stays_empty(collection_factory: Callable[[bool], Collection]) -> None:
    nothing = Ranking([np.array([], dtype=np.int64)] * 2, [np.array([], dtype=np.float32)] * 2)
    prepared = nothing.filter_and_cut(collection_factory(True), drop_same_id=True, depth=10)
    assert prepared.to_document_ids(collection_factory(True)) == {"a": [], "b": []}


def test_a_pair_score_does_not_depend_on_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    documents, queries = (draw.normal(size=(count, 37)).astype(np.float32) for count in (50, 9))
    positions, owners = torch.arange(450) // 9, torch.arange(450) % 9
    arguments = torch.from_numpy(documents), torch.from_numpy(queries)
    together = exact_search.multiply_gathered(*arguments, positions, owners)
    monkeypatch.setattr(exact_search, "PAIRS_PER_PRODUCT", 7)
    assert torch.equal(exact_search.multiply_gathered(*arguments, positions, owners), together)
    for at in (0, 123, 449):
        line = documents[at // 9] * queries[at % 9]
        while len(line) > 1:
            half = (len(line) + 1) // 2
            line = np.concatenate((line[: len(line) - half] + line[half:], line[len(line) - half : half]))
        assert float(together[at]) == float(line[0])


@pytest.mark.parametrize("setting", [True, False])
def test_search_disables_tf32_and_restores_the_setting(setting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    products, seen, rounded = torch.backends.cuda.matmul, [], exact_search.RunningTopK._compute_rough_scores
    before = products.allow_tf32

    def spied(self: exact_search.RunningTopK, window: exact_search.DocumentWindow) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(products.fp32_precision)
        return rounded(self, window)

    monkeypatch.setattr(exact_search.RunningTopK, "_compute_rough_scores", spied)
    vectors = np.eye(3, dtype=np.float32)
    try:
        products.allow_tf32 = setting
        exact_search.search_exactly(vectors, [VectorBlock(np.arange(3), vectors)], 1)
        assert (seen, products.allow_tf32) == (["ieee"], setting)
        assert (products.fp32_precision == "tf32") is setting
    finally:
        products.allow_tf32 = before


def test_search_out_of_memory_continues_with_fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, sizes = exact_search.RunningTopK._compute_rough_scores, []

    def short(self: exact_search.RunningTopK, window: exact_search.DocumentWindow) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(self.queries))
        if len(self.queries) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rounded(self, window)

    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    blocks = [VectorBlock(np.arange(start, start + 20), vectors[start : start + 20]) for start in (0, 20)]
    monkeypatch.setattr(exact_search, "WINDOW_ROWS", 20)
    expected = exact_search.search_exactly(vectors[:9], blocks, 5)
    monkeypatch.setattr(exact_search.RunningTopK, "_compute_rough_scores", short)
    assert list_hits(exact_search.search_exactly(vectors[:9], blocks, 5)) == list_hits(expected)
    assert sizes == [9, 4, 2, 2, 5, 2, 3, 2, 2, 2, 3]


@pytest.mark.parametrize("last", [128, 40], ids=["equal blocks", "a smaller last block"])
def test_blocks_as_large_as_tiles_are_read_in_place(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "DOCUMENT_TILE", 128)
    blocks = [torch.from_numpy(draw_unit_vectors(size, 16, size)) for size in (128, 128, last)]
    window = exact_search.DocumentWindow.build([torch.arange(256 + last)], blocks, torch.float32)
    assert [tile.data_ptr() for tile in window.tiles[:2]] == [block.data_ptr() for block in blocks[:2]]
    assert torch.equal(torch.cat(window.tiles)[: 256 + last], torch.cat(blocks))
    assert {len(tile) for tile in window.tiles} == {128}
    rounded = exact_search.DocumentWindow.build([torch.arange(256 + last)], blocks, torch.bfloat16)
    assert torch.equal(torch.cat(rounded.tiles)[: 256 + last], torch.cat(blocks).bfloat16())


def test_a_window_waits_for_the_memory_of_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is being embedded may hold the memory; it is done when the cache is released."""
    events: list[str] = []
    build = exact_search.DocumentWindow.build

    def build_at_second_try(*arguments: Any) -> exact_search.DocumentWindow:
        events.append("built")
        if len(events) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(*arguments)

    monkeypatch.setattr(exact_search.DocumentWindow, "build", build_at_second_try)
    monkeypatch.setattr(memory, "release_gpu_cache", lambda: events.append("released"))
    vectors = np.random.default_rng(5).standard_normal((40, 8), dtype=np.float32)
    found = exact_search.search_exactly(vectors[:3], [VectorBlock(np.arange(40), vectors)], 1)
    assert events == ["built", "released", "built"]
    assert np.concatenate(found.rows).tolist() == (vectors[:3] @ vectors.T).argmax(axis=1).tolist()
    with pytest.raises(RuntimeError, match="illegal"):
        memory.retry_out_of_memory(lambda: raise_error(RuntimeError("an illegal memory access")))


def raise_error(problem: Exception) -> None:
    raise problem


def test_fewer_pairs_of_wide_vectors_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.from_numpy(np.random.default_rng(5).standard_normal((40, 8), dtype=np.float32))
    positions, numbers = torch.arange(40), torch.arange(40) % 3
    together = exact_search.multiply_gathered(vectors, vectors[:3], positions, numbers)
    sizes: list[int] = []
    add = exact_search._sum_by_halves
    monkeypatch.setattr(exact_search, "_sum_by_halves", lambda products: sizes.append(len(products)) or add(products))
    monkeypatch.setattr(exact_search, "PAIR_BYTES", 15 * 8 * 4)
    assert torch.equal(exact_search.multiply_gathered(vectors, vectors[:3], positions, numbers), together)
    assert sizes == [15, 15, 10]
