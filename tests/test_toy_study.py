"""A plan at toy size: every stage of a paper's plan is there, under names that no real run has, and it runs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cli.main import app
from retbench.pipelines.studies.cells import list_study_cells
from retbench.pipelines.studies.toy_collections import TRAIN_QUERIES, write_collection
from retbench.pipelines.studies.toy_study import _rename_study

PAPERS = ("specialized-llms", "llm-ql", "llm2ir", "search-adaptor", "e2rank", "insertrank")
IMAGE_PLANS = ("unified", "search-adaptor-images")
FIRST = """
name = "mine"
title = "Mine"
references = ["mteb-beir"]
[[stages]]
name = "first"
models = ["bm25"]
suites = ["nanobeir"]
"""
TRAINED = """
[[stages]]
name = "trained"
verb = "finetune"
models = ["qwen3-0.6b"]
tasks = ["scifact"]
[stages.options]
dataset = "msmarco"
recipe = "quick"
[[stages]]
name = "reranked"
models = ["bm25", "minilm-l6"]
tasks = ["scifact"]
[stages.options]
rerank = ["vectors:model=qwen3-0.6b-mine-trained"]
"""


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back the folders that the command sets for its own process."""
    for name in ("RETBENCH_CARDS", "RETBENCH_CACHE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    yield
    monkeypatch.undo()
    for load_cards in (catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites, catalog.load_studies):
        load_cards.cache_clear()


def run_toy_plan(folder: Path, plan: str) -> list[dict[str, Any]]:
    file, out = folder / "mine.toml", folder / "out"
    file.write_text(plan)
    ran = CliRunner().invoke(app, ["study", "run", str(file), "--toy", "--out", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    cells: list[dict[str, Any]] = json.loads(ran.stdout)
    assert {cell["status"] for cell in cells} == {"done"}
    assert {path.parts[-4].startswith("toy-") for path in out.glob("**/record.json")} == {True}
    report = CliRunner().invoke(app, ["study", "report", str(file), "--toy", "--results", str(out)])
    assert "toy-nano-arguana" in report.stdout
    toy = catalog.find_study("toy-mine")  # the plan is a card beside the others
    assert [cell.needs for stage in toy.stages for cell in list_study_cells(toy, stage) if cell.needs] == []
    return cells


@pytest.mark.parametrize("name", [*PAPERS, *IMAGE_PLANS])
def test_a_toy_plan_has_all_stages_and_no_name_of_a_real_run(name: str, tmp_path: Path) -> None:
    study = catalog.find_study(name)
    toy = _rename_study(study, tmp_path)
    assert [stage.name for stage in toy.stages] == [stage.name for stage in study.stages]
    for stage, toy_stage in zip(study.stages, toy.stages, strict=True):
        assert [name.removeprefix("toy-") for name in toy_stage.models] == list(stage.models)
        lexical = [name for name in stage.models if catalog.find_model_card(name).kind == "lexical"]
        assert [name for name in toy_stage.models if not name.startswith("toy-")] == lexical
        assert all(name.startswith("toy-") for name in (*toy_stage.suites, *toy_stage.tasks))
        assert (toy_stage.verb, toy_stage.methods, toy_stage.set) == (stage.verb, stage.methods, stage.set)
        for reranker in toy_stage.options.get("rerank", ()):
            assert "model=" not in reranker or "model=toy-" in reranker or "engine=endpoint" in reranker


def test_a_task_on_the_dev_split_keeps_queries_to_train_on(tmp_path: Path) -> None:
    """A training leaves out the queries of every evaluation; an adaptor on MS MARCO had none left."""
    card = catalog.find_task_card("msmarco")
    write_collection(card, tmp_path)
    evaluated, train = ((tmp_path / "qrels" / f"{split}.tsv").read_text() for split in (card.split, "train"))
    assert len(train.splitlines()) == 1 + len(TRAIN_QUERIES)
    assert set(train.splitlines()[1:]).isdisjoint(evaluated.splitlines())


@pytest.mark.usefixtures("own_environment")
def test_a_plan_runs_and_reports_at_toy_size(tmp_path: Path) -> None:
    cells = run_toy_plan(tmp_path, FIRST)
    assert [cell["task"] for cell in cells] == ["toy-nano-arguana", "toy-nano-climate-fever"]


@pytest.mark.anchor
@pytest.mark.usefixtures("own_environment")
def test_trainings_and_rerankers_of_a_toy_plan_use_its_own_models(tmp_path: Path) -> None:
    cells = run_toy_plan(tmp_path, FIRST + TRAINED)
    assert {cell["model"] for cell in cells} == {"bm25", "toy-minilm-l6", "toy-qwen3-0.6b-toy-mine-trained"}


@pytest.mark.anchor
@pytest.mark.parametrize("name", IMAGE_PLANS)
@pytest.mark.usefixtures("own_environment")
def test_a_plan_with_images_runs_at_toy_size(name: str, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["study", "run", name, "--toy", "--out", str(tmp_path), "--json"])
    assert ran.exit_code == 0, ran.output
    cells = json.loads(ran.stdout)
    assert [(cell["model"], cell["task"], cell["error"]) for cell in cells if cell["status"] != "done"] == []
    records = [json.loads(file.read_text()) for file in tmp_path.glob("**/record.json")]
    readers = {record["model"] for record in records if record["collection"].get("document_images")}
    named = {"clip", "siglip2", "gme", *({"qwen2.5-vl", "qwen3-vl"} if name == "unified" else ())}
    assert {word for word in named if any(word in reader for reader in readers)} == named  # they saw the images
    report = CliRunner().invoke(app, ["study", "report", name, "--toy", "--results", str(tmp_path)])
    assert report.exit_code == 0, report.output
    if name == "unified":
        assert "| model | method | text-to-code | text-to-page | text-to-text | mean |" in report.stdout
        assert "best model of each kind" in report.stdout
        assert "| relevant documents | text | 25% | 25% | 50% |" in report.stdout
