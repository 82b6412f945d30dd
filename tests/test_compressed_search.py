"""Search over int8 and binary vectors: against plain numpy, faiss and exact search, and from the command line."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.cards import ann_settings
from retbench.cards.ann_settings import BinarySettings, CompressedType, Int8Settings
from retbench.retrievers import compressed_search
from retbench.retrievers.compressed_search import CompressedSearch, compress_vectors, search_compressed
from retbench.retrievers.exact_search import search_exactly
from retbench.retrievers.ranking import Ranking
from retbench.store.cached_stores import list_cached_stores
from retbench.store.shard_store import VectorBlock
from tests.test_run import run_cells, run_command

WIDTH = 70  # no multiple of 8 or 32


def draw_vectors(rows: int, seed: int, width: int = WIDTH) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


QUERIES, DOCUMENTS = draw_vectors(23, 1), draw_vectors(900, 2)


def build_blocks(documents: np.ndarray = DOCUMENTS) -> list[VectorBlock]:
    order = np.random.default_rng(3).permutation(len(documents))
    cuts = [*range(0, len(documents), 170), len(documents)]
    return [VectorBlock(order[start:end], documents[order[start:end]]) for start, end in pairwise(cuts)]


def score_plainly(name: CompressedType, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The scores by the formulas of the module's first lines, in float64, text by text."""
    if name == "binary":
        different = np.array([[np.sum((q > 0) != (d > 0)) for d in documents] for q in queries])
        return np.asarray(1 - 2 * different / queries.shape[1])
    rounded = []
    for vectors in (queries, documents):
        scales = np.abs(vectors).max(axis=1).astype(np.float64) / 127
        rounded.append(np.round(vectors / scales[:, None]) * scales[:, None])
    return np.asarray(rounded[0] @ rounded[1].T)


def search_by_codes(name: CompressedType, k: int) -> Ranking:
    search = CompressedSearch(name, QUERIES, k)
    for block in build_blocks():
        search.add_block(block)
    return search.finish()


@pytest.mark.parametrize("name", ["int8", "binary"])
@pytest.mark.parametrize("is_exact_product", [True, False])
def test_the_ranking_is_that_of_plain_numpy(
    name: CompressedType, is_exact_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_search, "DOCUMENT_TILE", 64)
    monkeypatch.setattr(compressed_search, "QUERY_TILE", 10)
    if not is_exact_product:  # the path of a CPU without VNNI
        monkeypatch.setattr(compressed_search, "has_exact_int8_product", lambda: False)
    expected = score_plainly(name, QUERIES, DOCUMENTS)
    ranking = search_by_codes(name, 50)
    for rows, scores, all_scores in zip(ranking.rows, ranking.scores, expected, strict=True):
        assert np.allclose(scores, all_scores[rows], atol=1e-6)
        order = np.lexsort((rows, -scores))
        assert (order == np.arange(50)).all()
        assert np.allclose(scores, np.sort(all_scores)[::-1][:50], atol=1e-6)


def test_hamming_distances_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss", reason="the peer of this test is faiss")
    codes, asked = (np.packbits(vectors > 0, axis=1) for vectors in (DOCUMENTS, QUERIES))
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    distances, _ = index.search(asked, 40)
    ranking = search_by_codes("binary", 40)
    assert np.array_equal(np.round((1 - np.array(ranking.scores)) * WIDTH / 2).astype(int), distances)


@pytest.mark.parametrize("settings", [Int8Settings(900), BinarySettings(900)])
def test_with_all_documents_scored_again_the_search_is_exact(settings: ann_settings.CompressedSettings) -> None:
    ranking = search_compressed(settings, QUERIES, build_blocks(), build_blocks, 900)
    exact = search_exactly(QUERIES, build_blocks(), 900)
    assert np.array_equal(ranking.rows, exact.rows)
    assert np.array_equal(ranking.scores, exact.scores)  # the same bits


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_only_the_first_documents_are_scored_again(name: CompressedType) -> None:
    settings = ann_settings.parse_ann_settings(f"{name}:rescore=20")
    assert isinstance(settings, Int8Settings | BinarySettings)
    by_codes = search_by_codes(name, 60)
    ranking = search_compressed(settings, QUERIES, build_blocks(), build_blocks, 60)
    for query, (rows, scores) in enumerate(zip(ranking.rows, ranking.scores, strict=True)):
        assert set(rows[:20]) == set(by_codes.rows[query][:20])
        assert np.array_equal(rows[20:], by_codes.rows[query][20:])
        assert np.allclose(scores[:20], DOCUMENTS[rows[:20]] @ QUERIES[query], atol=1e-6)
        assert (np.diff(scores) <= 0).all()


def test_rescoring_finds_more_of_the_exact_top() -> None:
    exact = search_exactly(QUERIES, build_blocks(), 10)
    recalls = {
        rescore: np.mean(
            [
                len(np.intersect1d(found, right)) / 10
                for found, right in zip(
                    search_compressed(BinarySettings(rescore), QUERIES, build_blocks(), build_blocks, 10).rows,
                    exact.rows,
                    strict=True,
                )
            ]
        )
        for rescore in (0, 40, 400)
    }
    assert recalls[0] < recalls[40] < recalls[400]


@given(seed=st.integers(0, 99), width=st.sampled_from([1, 7, 64, 1100, 3000]))
def test_large_codes_are_added_without_an_error(seed: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    signs = draw.choice([-127, 127], (5, width)).astype(np.int8)
    documents = np.concatenate((signs, -signs, draw.integers(-127, 128, (4, width)).astype(np.int8)))
    expected = signs.astype(np.int64) @ documents.T.astype(np.int64)
    product = compressed_search.multiply_codes(torch.from_numpy(signs), torch.from_numpy(documents))
    assert np.array_equal(product.numpy(), expected)


def test_a_document_takes_the_bytes_that_the_settings_say() -> None:
    assert compress_vectors(DOCUMENTS, "int8").nbytes == 900 * Int8Settings().count_bytes(WIDTH)
    assert compress_vectors(DOCUMENTS, "binary").nbytes == 900 * BinarySettings().count_bytes(WIDTH)


def test_zero_vectors_and_no_documents_are_no_error() -> None:
    search = CompressedSearch("int8", np.zeros((1, 4), dtype=np.float32), 3)
    search.add_block(VectorBlock(np.arange(2), np.zeros((2, 4), dtype=np.float32)))
    assert [rows.tolist() for rows in search.finish().rows] == [[0, 1]]
    empty = search_compressed(Int8Settings(), QUERIES, [], list, 5)
    assert [len(rows) for rows in empty.rows] == [0] * len(QUERIES)


def read_record(cell: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads((Path(cell["record"]) / "record.json").read_text()))


def test_one_embedding_gives_a_row_for_each_dimension_and_search(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--method", "mean", "--out", out)
    (whole,) = run_cells(*line)
    stores = {stored.path for stored in list_cached_stores()}
    cells = run_cells(*line, "--set", "dimensions=8,16", "--set", "search=exact,int8,binary:rescore=2")
    assert {stored.path for stored in list_cached_stores()} == stores
    settings = [read_record(cell)["settings"] for cell in cells]
    variants = [(found["encoder"]["dimensions"], found["retriever"]) for found in settings]
    searches = ("dense", "int8:rescore=100", "binary:rescore=2")
    assert variants == [(width, search) for width in (8, 16) for search in searches]
    assert len({whole["settings_id"], *(cell["settings_id"] for cell in cells)}) == 7
    facts = read_record(cells[1])["texts"]["search"]
    assert facts == {"search": "int8:rescore=100", "recall": 1.0, "at": 100, "sampled_queries": 3}
    assert cells[1]["scores"] == cells[0]["scores"]  # all 20 documents are scored again
    (again,) = run_cells(*line, "--set", "search=exact")
    assert again["settings_id"] == whole["settings_id"]
    plots = out.parent / "plots"
    board = run_command("report", out, "--format", "csv", "--plots", plots).stdout
    assert "8 dimensions, search binary:rescore=2" in board
    assert len(board.splitlines()) == 1 + 7  # no variant replaces another
    assert "mean · int8:rescore=100" in next(plots.glob("*over-bytes.svg")).read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search=int8:rescore=-1", "rescore is too small"),
        ("search=int8:probes=3", "no option 'probes'"),
        ("search=bianry", "there is no such search"),
        ("dimensions=8,,16", "an empty value"),
        ("dimensions=8,x", "not a int"),
    ],
)
def test_invalid_values_are_usage_errors(model: Path, task: Path, out: Path, setting: str, message: str) -> None:
    answer = run_command("run", "--model", model, "--task", task, "--out", out, "--set", setting)
    assert answer.exit_code == 2
    assert message in answer.output
    assert not out.exists()
