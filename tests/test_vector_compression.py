"""Smaller vectors: truncated dimensions, fewer bytes on disk; embeddings shared by splits and tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from retbench.cli.main import app
from retbench.errors import UsageError
from retbench.retrievers.dense_retriever import truncate_dimensions
from retbench.store.cached_stores import list_cached_stores
from retbench.store.shard_store import ShardStore, VectorBlock
from retbench.store.vector_formats import VECTOR_FORMATS, VectorDtype, compute_row_bytes, decode_vectors
from tests import small_collection


def run_command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def run_cell(*words: object) -> dict[str, Any]:
    answer = run_command(*words, "--json")
    assert answer.exit_code == 0, answer.output
    (cell,) = json.loads(answer.stdout)
    return dict(cell)


def draw_unit_vectors(seed: int, rows: int = 9, width: int = 24) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize(("form", "min_cosine"), [("fp32", 1 - 1e-6), ("fp16", 0.999999), ("int8", 0.9998)])
@given(seed=st.integers(0, 999))
def test_compressed_vectors_keep_their_direction(form: VectorDtype, min_cosine: float, seed: int) -> None:
    vectors = draw_unit_vectors(seed)
    decoded = decode_vectors(VECTOR_FORMATS[form].encode(vectors))
    assert decoded.dtype == np.float32
    assert (vectors * decoded).sum(axis=1).min() > min_cosine
    assert np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("form", VECTOR_FORMATS)
def test_a_block_is_equal_when_written_and_when_read(form: VectorDtype, tmp_path: Path) -> None:
    store = ShardStore(tmp_path, form)
    written = store.write_shard(0, VectorBlock(np.arange(9), draw_unit_vectors(1)), tokens=1, seconds=0.0)
    block = store.read_shard(0)
    assert block
    assert np.array_equal(block.vectors, written.vectors)
    stored = (tmp_path / "shard-00000.safetensors").stat().st_size
    assert 0 < stored - 9 * compute_row_bytes(24, form) < 300  # the rest is the header of the file


def test_truncated_dimensions_are_normalised() -> None:
    assert np.allclose(truncate_dimensions(np.array([[3, 4, 12]], dtype=np.float32), 2), [[0.6, 0.8]])
    assert np.isfinite(truncate_dimensions(np.array([[0, 0, 1]], dtype=np.float32), 2)).all()
    with pytest.raises(UsageError, match="the vectors have 3"):
        truncate_dimensions(np.ones((1, 3), dtype=np.float32), 4)


def test_truncation_embeds_nothing_again_but_another_format_does(model: Path, tmp_path: Path) -> None:
    line = ("run", "--model", model, "--task", small_collection.write_folder(tmp_path / "pantry"), "--method", "mean")
    line = (*line, "--out", tmp_path / "out")
    cell = run_cell(*line)
    stores = {stored.path for stored in list_cached_stores()}
    cut = run_cell(*line, "--set", "dimensions=8")
    assert {stored.path for stored in list_cached_stores()} == stores
    assert cut["settings_id"] != cell["settings_id"]
    half = run_cell(*line, "--set", "vector_dtype=int8")
    assert len(list(list_cached_stores())) == 2 * len(stores)
    assert half["settings_id"] not in (cell["settings_id"], cut["settings_id"])
    settings = json.loads((Path(cut["record"]) / "record.json").read_text())["settings"]
    assert settings["encoder"]["dimensions"] == 8
    assert "dimensions" not in json.loads((Path(cell["record"]) / "record.json").read_text())["settings"]["encoder"]


WRONG_OPTIONS = {
    "another form": ("vector_dtype=fp8", "did you mean"),
    "too many": ("dimensions=9999", "give that many or fewer"),
    "none": ("dimensions=0", "1 or more"),
}


@pytest.mark.parametrize(("setting", "hint"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_invalid_options_are_usage_errors(model: Path, tmp_path: Path, setting: str, hint: str) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    answer = run_command(
        "run", "--model", model, "--task", task, "--method", "mean", "--set", setting, "--out", tmp_path / "o"
    )
    assert answer.exit_code == 2
    assert hint in answer.output


def test_splits_and_tasks_share_document_embeddings(model: Path, tmp_path: Path) -> None:
    first, second = (
        small_collection.write_folder(tmp_path / "pantry"),
        small_collection.write_folder(tmp_path / "another"),
    )
    line = ("run", "--model", model, "--method", "mean", "--out", tmp_path / "out")
    run_cell(*line, "--task", first)
    run_cell(*line, "--task", first, "--set", "split=train")
    run_cell(*line, "--task", second)
    documents = [stored for stored in list_cached_stores() if stored.rows == len(small_collection.DOCUMENTS)]
    assert len(documents) == 1
    assert documents[0].used_by == ("another (mean)", "pantry (mean)")
