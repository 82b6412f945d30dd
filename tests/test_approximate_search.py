"""Approximate search: its results, its measured recall, and that it is never the default."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from retbench.cards import ann_settings
from retbench.cli.main import app
from retbench.errors import MissingError, UsageError
from retbench.retrievers import approximate_search, exact_search
from retbench.store.shard_store import VectorBlock
from tests import small_collection, tiny_models

pytest.importorskip("faiss", reason="approximate search needs faiss: pip install 'retbench[ann]'")


def draw_unit_vectors(rows: int, seed: int, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


QUERIES, DOCUMENTS = draw_unit_vectors(30, 1), draw_unit_vectors(3000, 2)


def build_blocks() -> list[VectorBlock]:
    order = np.random.default_rng(3).permutation(len(DOCUMENTS))
    cuts = pairwise(range(0, 3001, 500))
    return [VectorBlock(order[start:end], DOCUMENTS[order[start:end]]) for start, end in cuts]


def search_with(spelling: str) -> tuple[approximate_search.Ranking, dict[str, Any]]:
    expected = ann_settings.parse_ann_settings(spelling)
    assert expected
    return approximate_search.search_approximately(expected, QUERIES, build_blocks, 10, len(DOCUMENTS))


@pytest.mark.parametrize("spelling", ["ivf:lists=20,probes=20", "hnsw:breadth=2000"])
def test_searching_every_list_equals_exact_search(spelling: str) -> None:
    ranking, facts = search_with(spelling)
    exact = exact_search.search_exactly(QUERIES, build_blocks(), 10)
    assert facts["recall"] >= 0.99
    for rows, scores, right in zip(ranking.rows, ranking.scores, exact.rows, strict=True):
        assert len(np.intersect1d(rows, right)) >= 9
        assert (np.diff(scores) <= 0).all()
        assert rows.dtype == np.int64


def test_reported_recall_is_the_recall_of_the_ranking() -> None:
    ranking, facts = search_with("ivf:lists=50,probes=2")
    exact = exact_search.search_exactly(QUERIES, build_blocks(), 10)
    shares = [len(np.intersect1d(*sides)) / 10 for sides in zip(ranking.rows, exact.rows, strict=True)]
    assert facts == {
        "search": "ivf:lists=50,probes=2",
        "recall": pytest.approx(np.mean(shares)),
        "at": 10,
        "sampled_queries": 30,
    }
    assert 0.05 < facts["recall"] < 0.9  # 2 of 50 lists miss some of the top 10


def test_recall_is_measured_on_a_sample_of_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate_search, "RECALL_QUERIES", 7)
    assert search_with("ivf:lists=20,probes=20")[1]["sampled_queries"] == 7


def test_lists_with_fewer_than_k_documents_return_fewer() -> None:
    expected = ann_settings.IvfSettings(lists=3, probes=1)
    ranking, _ = approximate_search.search_approximately(
        expected, QUERIES, lambda: [VectorBlock(np.arange(6), DOCUMENTS[:6])], 10, 6
    )
    assert all(0 < len(rows) < 6 for rows in ranking.rows)


def test_no_documents_give_an_empty_ranking() -> None:
    ranking, facts = approximate_search.search_approximately(ann_settings.HnswSettings(), QUERIES, list, 10, 0)
    assert [len(rows) for rows in ranking.rows] == [0] * 30
    assert facts["recall"] == 1.0


def test_equal_settings_have_one_spelling() -> None:
    first, second = (
        ann_settings.parse_ann_settings("hnsw:breadth=9,links=8"),
        ann_settings.parse_ann_settings("hnsw:links=8,breadth=9"),
    )
    assert first == second
    assert first
    assert ann_settings.format_ann_settings(first) == "hnsw:breadth=9,building=200,links=8"
    assert ann_settings.parse_ann_settings("exact") is None


@pytest.mark.parametrize(
    "spelling", ["ivff", "ivf:probe=3", "ivf:probes=0", "hnsw:links=x", "exact:probes=3", "hnsw:links"]
)
def test_invalid_settings_are_refused(spelling: str) -> None:
    with pytest.raises(UsageError):
        ann_settings.parse_ann_settings(spelling)


def test_missing_faiss_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingError) as problem:
        search_with("hnsw")
    assert "[ann]" in problem.value.next_step


def test_a_run_records_the_search_and_its_recall(tmp_path: Path) -> None:
    model, task = tiny_models.build_model(tmp_path / "tiny"), small_collection.write_folder(tmp_path / "pantry")
    line = [
        "run",
        "--model",
        str(model),
        "--task",
        str(task),
        "--method",
        "mean",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]

    def record(*more: str) -> dict[str, Any]:
        answer = CliRunner().invoke(app, [*line, *more], catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        (cell,) = json.loads(answer.stdout)
        return dict(json.loads((Path(cell["record"]) / "record.json").read_text()))

    exact_record = record()
    assert exact_record["settings"]["retriever"] == "dense"
    assert "search" not in exact_record["texts"]
    close = record("--set", "search=ivf:lists=2,probes=2")
    assert close["settings"]["retriever"] == "ivf:lists=2,probes=2"
    assert close["settings_id"] != exact_record["settings_id"]
    assert close["texts"]["search"]["recall"] == 1.0  # both lists are searched
    assert close["scores"] == exact_record["scores"]
    assert record("--set", "search=exact")["settings_id"] == exact_record["settings_id"]
