"""The cache verb: embeddings are listed with their cost and users, and pruned; splits and tasks share them."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from retbench.cli.main import app
from retbench.store.embedding_cache import open_store
from tests import small_collection, tiny_models


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def rows(*words: object) -> list[dict[str, Any]]:
    answer = call(*words, "--json")
    assert answer.exit_code == 0, answer.output
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    return found


def test_stored_embeddings_are_listed_and_pruned(model: Path, tmp_path: Path) -> None:
    task = small_collection.write(tmp_path / "pantry")
    call("run", "--model", model, "--task", task, "--method", "mean", "--out", tmp_path / "out")
    found = rows("cache", "list")
    assert sorted(stored["rows"] for stored in found) == [3, 20]
    assert all(stored["finished"] and stored["used_by"] == ["pantry (mean)"] for stored in found)
    documents = max(found, key=lambda stored: stored["rows"])
    assert documents["bytes"] > 20 * tiny_models.WIDTH * 4
    assert "pantry (mean)" in call("cache", "list").stdout
    assert rows("cache", "prune", "--unfinished") == []
    assert rows("cache", "prune", "--model", "another") == []
    assert rows("cache", "prune", "--embeddings", "--dry-run") == rows("cache", "list")
    assert "2 stores removed" in call("cache", "prune", "--embeddings").stdout
    assert rows("cache", "list") == []


def test_an_unfinished_store_is_pruned_alone(tmp_path: Path) -> None:
    for key in ("begun", "done"):
        open_store("m", key).record_use("a cell")
    open_store("m", "done").write_manifest({"rows": 0})
    assert [stored["key"] for stored in rows("cache", "prune", "--unfinished")] == ["begun"]
    assert [stored["key"] for stored in rows("cache", "list")] == ["done"]


def test_a_store_at_work_stays() -> None:
    store = open_store("m", "busy")
    with store.lock():
        answer = call("cache", "prune", "--embeddings")
    assert "1 in use by another process: kept" in answer.stderr
    assert store.folder.exists()


def test_prune_wants_to_be_told_what(tmp_path: Path) -> None:
    assert call("cache", "prune").exit_code == 2
