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
    drawn = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


QUERIES, DOCUMENTS = draw_unit_vectors(30, 1), draw_unit_vectors(3000, 2)


def build_blocks() -> list[VectorBlock]:
    order = np.random.default_rng(3).permutation(len(DOCUMENTS))
    cuts = pairwise(range(0, 3001, 500))
    return [VectorBlock(order[start:end], DOCUMENTS[order[start:end]]) for start, end in cuts]


def search_with(word: str) -> tuple[approximate_search.Ranking, dict[str, Any]]:
    wanted = ann_settings.parse_ann_settings(word)
    assert wanted
    return approximate_search.search_approximately(wanted, QUERIES, build_blocks(), 10, len(DOCUMENTS))


@pytest.mark.parametrize("word", ["ivf:lists=20,probes=20", "hnsw:breadth=2000"])
def test_searching_every_list_equals_exact_search(word: str) -> None:
    ranking, told = search_with(word)
    truth = exact_search.search_exactly(QUERIES, build_blocks(), 10)
    assert told["recall"] >= 0.99
    for rows, scores, right in zip(ranking.rows, ranking.scores, truth.rows, strict=True):
        assert len(np.intersect1d(rows, right)) >= 9
        assert (np.diff(scores) <= 0).all()
        assert rows.dtype == np.int64


def test_reported_recall_is_the_recall_of_the_ranking() -> None:
    ranking, told = search_with("ivf:lists=50,probes=2")
    truth = exact_search.search_exactly(QUERIES, build_blocks(), 10)
    shares = [len(np.intersect1d(*sides)) / 10 for sides in zip(ranking.rows, truth.rows, strict=True)]
    assert told == {
        "search": "ivf:lists=50,probes=2",
        "recall": pytest.approx(np.mean(shares)),
        "at": 10,
        "sampled_queries": 30,
    }
    assert 0.05 < told["recall"] < 0.9  # two of fifty lists do not hold everything


def test_recall_is_measured_on_a_sample_of_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate_search, "RECALL_QUERIES", 7)
    assert search_with("ivf:lists=20,probes=20")[1]["sampled_queries"] == 7


def test_lists_with_fewer_than_k_documents_return_fewer() -> None:
    wanted = ann_settings.IvfSettings(lists=3, probes=1)
    ranking, _ = approximate_search.search_approximately(
        wanted, QUERIES, [VectorBlock(np.arange(6), DOCUMENTS[:6])], 10, 6
    )
    assert all(0 < len(rows) < 6 for rows in ranking.rows)


def test_no_documents_give_an_empty_ranking() -> None:
    ranking, told = approximate_search.search_approximately(ann_settings.HnswSettings(), QUERIES, [], 10, 0)
    assert [len(rows) for rows in ranking.rows] == [0] * 30
    assert told["recall"] == 1.0


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
    "word", ["ivff", "ivf:probe=3", "ivf:probes=0", "hnsw:links=x", "exact:probes=3", "hnsw:links"]
)
def test_invalid_settings_are_refused(word: str) -> None:
    with pytest.raises(UsageError):
        ann_settings.parse_ann_settings(word)


def test_missing_faiss_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingError) as problem:
        search_with("hnsw")
    assert "retbench[ann]" in problem.value.next_step


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
        ran = CliRunner().invoke(app, [*line, *more], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        (cell,) = json.loads(ran.stdout)
        return dict(json.loads((Path(cell["record"]) / "record.json").read_text()))

    plain = record()
    assert plain["settings"]["retriever"] == "dense"
    assert "search" not in plain["texts"]
    close = record("--set", "search=ivf:lists=2,probes=2")
    assert close["settings"]["retriever"] == "ivf:lists=2,probes=2"
    assert close["settings_id"] != plain["settings_id"]
    assert close["texts"]["search"]["recall"] == 1.0  # both lists are looked at
    assert close["scores"] == plain["scores"]
    assert record("--set", "search=exact")["settings_id"] == plain["settings_id"]
