"""`dtype` of a reranker with a model of its own, and what `run --set` says to a user who expects it to reach there."""

import json
from pathlib import Path
from typing import Any

import pytest

from retbench.cards.reranker_settings import parse_reranker
from retbench.pipelines.reranking.chain import find_unread_settings
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def line(tmp_path: Path) -> tuple[str, ...]:
    folder = small_collection.write_folder(tmp_path / "kitchen")
    return ("run", "--model", "bm25", "--task", str(folder), "--out", str(tmp_path / "results"))


def read_reranker(cell: dict[str, Any]) -> dict[str, Any]:
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    reranker: dict[str, Any] = record["settings"]["rerankers"][-1]
    return reranker


def test_an_encoder_reranks_in_the_dtype_of_its_option(model: Path, line: tuple[str, ...]) -> None:
    *_, usual = run_cells(*line, "--rerank", f"e2rank:model={model},method=last,documents=2")
    assert "dtype" not in read_reranker(usual)  # earlier settings-ids stay
    _, baseline, listed = run_cells(*line, "--rerank", f"e2rank:model={model},method=last,documents=2,dtype=bf16")
    for cell in (baseline, listed):
        assert read_reranker(cell)["dtype"] == read_reranker(cell)["encoder"]["dtype"] == "bfloat16"
        assert "dtype=bfloat16" in cell["rerank"][-1]
    *_, same = run_cells(*line, "--rerank", f"e2rank:model={model},method=last,documents=2,dtype=float32")
    assert read_reranker(same)["encoder"]["dtype"] == "float32"


def test_a_language_model_reranks_in_the_dtype_of_its_option(model: Path, line: tuple[str, ...]) -> None:
    rerank = f"listwise:model={model},written=2,depth=2,cut=16"
    *_, listed = run_cells(*line, "--sample", "1", "--rerank", f"{rerank},dtype=float16")
    assert read_reranker(listed)["dtype"] == "float16"
    refused = run_command(*line, "--rerank", "listwise:engine=endpoint,model=served,dtype=bf16", "--json")
    assert "dtype=bfloat16 does not apply with engine=endpoint" in refused.stdout


@pytest.mark.parametrize(
    ("rerank", "value", "told"),
    [("cross:model=judge", "bfloat16", True), ("cross:model=judge", "int8", False), ("vectors", "bfloat16", False),
     ("ql:depth=5", "bfloat16", False), ("listwise:engine=endpoint,model=served", "bfloat16", False)],
)  # fmt: skip
def test_an_option_is_offered_if_the_reranker_has_it(rerank: str, value: str, told: bool) -> None:
    assert bool(find_unread_settings([parse_reranker(rerank)], {"dtype": value})) == told


@pytest.mark.parametrize("command", [[], ["--dry-run"]])
def test_set_that_is_only_for_the_first_stage_names_the_option(
    model: Path, line: tuple[str, ...], command: list[str]
) -> None:
    rerank = f"vectors:method=last,model={model}"
    told = run_command(*line, *command, "--set", "dtype=bfloat16", "--rerank", rerank)
    assert f"for the reranker write --rerank {rerank},dtype=bfloat16" in told.stderr.replace("\n", "")
    quiet = run_command(*line, *command, "--set", "dtype=bfloat16", "--rerank", f"{rerank},dtype=float32")
    assert "for the reranker" not in quiet.stderr
