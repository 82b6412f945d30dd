"""The command `cache`: embeddings are listed with cost and users, and pruned."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from retbench.cli.main import app
from retbench.store.embedding_cache import open_store
from retbench.store.pair_scores import PairScoreStore
from tests import small_collection, tiny_models


def run_command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def list_cache_rows(*words: object) -> list[dict[str, Any]]:
    answer = run_command(*words, "--json")
    assert answer.exit_code == 0, answer.output
    stored_rows: list[dict[str, Any]] = json.loads(answer.stdout)
    return stored_rows


def test_stored_embeddings_are_listed_and_pruned(model: Path, tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    run_command("run", "--model", model, "--task", task, "--method", "mean", "--out", tmp_path / "out")
    stored_rows = list_cache_rows("cache", "list")
    assert sorted(stored["rows"] for stored in stored_rows) == [3, 20]
    assert all(stored["finished"] and stored["used_by"] == ["pantry (mean)"] for stored in stored_rows)
    documents = max(stored_rows, key=lambda stored: stored["rows"])
    assert documents["bytes"] > 20 * tiny_models.WIDTH * 4
    assert "pantry (mean)" in run_command("cache", "list").stdout
    assert list_cache_rows("cache", "prune", "--unfinished") == []
    assert list_cache_rows("cache", "prune", "--model", "another") == []
    assert list_cache_rows("cache", "prune", "--embeddings", "--dry-run") == list_cache_rows("cache", "list")
    assert "2 stores removed" in run_command("cache", "prune", "--embeddings").stdout
    assert list_cache_rows("cache", "list") == []


def test_prune_can_remove_only_unfinished_stores(tmp_path: Path) -> None:
    for key in ("begun", "done"):
        open_store("m", key).record_use("a cell")
    open_store("m", "done").write_manifest({"rows": 0})
    assert [stored["key"] for stored in list_cache_rows("cache", "prune", "--unfinished")] == ["begun"]
    assert [stored["key"] for stored in list_cache_rows("cache", "list")] == ["done"]


def test_a_store_in_use_is_kept() -> None:
    store = open_store("m", "busy")
    with store.lock():
        answer = run_command("cache", "prune", "--embeddings")
    assert "1 kept: in use by another process" in answer.stderr
    assert store.folder.exists()


def test_scores_of_cross_encoders_are_listed_and_pruned() -> None:
    store = PairScoreStore.open_for("org/judge", {"weights": "w"})
    store.add_scores([("query", "document"), ("query", "another")], [1.0, 2.0])
    open_store("m", "done").record_use("a cell")
    open_store("m", "done").write_manifest({"rows": 0})
    (stored,) = [row for row in list_cache_rows("cache", "list") if row["kind"] == "pair scores"]
    assert (stored["model"], stored["rows"], stored["finished"], stored["used_by"]) == ("org/judge", 2, True, [])
    assert stored["key"] == store.file.stem
    assert stored["bytes"] == store.file.stat().st_size
    assert "pair scores" in run_command("cache", "list").stdout
    assert list_cache_rows("cache", "prune", "--unfinished") == []
    assert list_cache_rows("cache", "prune", "--pair-scores", "--dry-run") == [stored]
    assert list_cache_rows("cache", "prune", "--model", "org/judge") == [stored]
    assert not store.file.parent.exists()
    assert [row["model"] for row in list_cache_rows("cache", "list")] == ["m"]


def test_pair_scores_that_are_being_written_are_kept_and_damaged_ones_are_removed() -> None:
    store = PairScoreStore.open_for("judge", {})
    store.add_scores([("query", "document")], [1.0])
    with closing(sqlite3.connect(store.file)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert "1 kept: in use by another process" in run_command("cache", "prune", "--pair-scores").stderr
    assert store.find_scores([("query", "document")]) == [1.0]
    store.file.write_bytes(b"not a database, " * 100)
    assert [row["rows"] for row in list_cache_rows("cache", "list")] == [None]
    assert "1 stores removed" in run_command("cache", "prune", "--pair-scores").stdout


def test_prune_needs_a_selection(tmp_path: Path) -> None:
    assert run_command("cache", "prune").exit_code == 2
