"""Every paper's plan and the plans with images, unchanged, from fetching to the report (tests/toy_hub.py).

Scores mean nothing here. The test holds that no stage, model, recipe, reranker or table of a plan is dead. Every
collection is fetched and read by its own loader; each stage then runs on one task of each layout, with all its models.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.study import Stage, Study
from retbench.corpora import stdlib_suite
from retbench.pipelines import fetch
from retbench.pipelines.estimate_cost import DeviceSpec
from retbench.pipelines.studies import cells, training
from retbench.pipelines.studies.cells import list_study_cells
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.overview import build_overview
from retbench.pipelines.studies.reproduction import build_reproduction_tables
from retbench.pipelines.studies.requirements import list_fetchable_names, uses_endpoint
from retbench.pipelines.studies.run import run_study
from retbench.pipelines.studies.status import build_stage_reports, list_statuses
from retbench.reports.published_tables import load_shipped_tables
from retbench.reports.study_tables import format_study_markdown
from retbench.training.hub_corpora import HUB_CORPORA
from retbench.training.hub_datasets import HUB_SETS
from tests import small_stdlib
from tests.local_server import answer_chat, start_server
from tests.toy_hub import DOCUMENTS, ToyHub, build_msmarco_training_rows, toy_hub  # noqa: F401

pytestmark = pytest.mark.anchor  # minutes in all: `make anchors`

PAPERS = ("specialized-llms", "llm-ql", "llm2ir", "search-adaptor", "e2rank", "insertrank")
IMAGE_PLANS = ("unified", "search-adaptor-images")
STEPS = 2


def fill_hub(hub: ToyHub, study: Study) -> None:
    """Put everything that the study asks for into the hub."""
    splits = {
        cell.task: stage.set["split"]
        for stage in study.stages
        if "split" in stage.set
        for cell in list_study_cells(study, stage)
    }
    for name in list_fetchable_names(study):
        if name in catalog.load_model_cards():
            hub.add_model(catalog.find_model_card(name))
        for task in fetch._resolve_tasks(name):
            card = catalog.find_task_card(task)
            hub.add_task(replace(card, split=splits.get(card.name, card.split)))
    for stage in study.stages:
        dataset = str(stage.options.get("dataset", ""))
        if dataset in HUB_CORPORA:
            corpus = HUB_CORPORA[dataset]
            rows = [{corpus.column: " ".join([text] * 4)} for _, _, text in DOCUMENTS]
            hub.add_dataset(corpus.repo, {corpus.config: {corpus.split: rows}})
        elif dataset in HUB_SETS:
            hub.add_dataset(HUB_SETS[dataset].repo, build_msmarco_training_rows())


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of two steps; everything else is the recipe's."""
    build_recipe = training.build_recipe

    def build_short_recipe(*arguments: Any) -> Any:
        recipe = build_recipe(*arguments)
        if isinstance(recipe, AdaptorRecipe):
            return replace(recipe, max_steps=STEPS, eval_steps=1, alpha=recipe.alpha[-1:], beta=recipe.beta[-1:])
        return replace(recipe, optimizer=replace(recipe.optimizer, max_steps=STEPS))

    monkeypatch.setattr(training, "build_recipe", build_short_recipe)


def keep_one_task_of_each_layout(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tasks of a stage keep one for each suite and kind of source, if possible one with a published figure."""
    tables = [table for table in load_shipped_tables() if table.name in study.reproduces]
    published = {task for table in tables for task in table.tasks}
    resolve_tasks = cells._resolve_tasks

    def resolve_few_tasks(stage: Stage) -> list[Any]:
        tasks = sorted(resolve_tasks(stage), key=lambda task: task[1] not in published)
        kept: dict[tuple[Any, ...], Any] = {}
        for task in tasks:
            card = catalog.find_task_card(task[0])
            source = card.source
            parts = (source.kind, source.mteb is None, source.subset is None, source.corpus_repo, card.metric)
            kept.setdefault((card.suite, card.published_split == card.split, *parts), task)
        return list(kept.values())

    monkeypatch.setattr(cells, "_resolve_tasks", resolve_few_tasks)


@pytest.fixture
def small_stdlib_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites that are generated here have few rows."""
    definitions = small_stdlib.build_definitions(100)
    monkeypatch.setattr(stdlib_suite, "iterate_definitions", lambda: iter(definitions))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with OpenAI's protocol that ranks the first two documents of a list."""
    with start_server() as server:
        server.answer = answer_chat(lambda body: "[2] > [1]")
        monkeypatch.setenv("RETBENCH_ENDPOINT", server.address)
        yield


@pytest.mark.parametrize("name", [*PAPERS, *IMAGE_PLANS])
@pytest.mark.usefixtures("short_trainings", "endpoint", "small_stdlib_suites")
def test_a_plan_runs_from_the_fetch_to_the_report(
    name: str,
    toy_hub: ToyHub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, out = catalog.find_study(name), tmp_path / "results"
    fill_hub(toy_hub, study)
    fetched = [row for item in list_fetchable_names(study) for row in fetch.fetch_by_name(item, lambda _: None)]
    assert [(row["name"], row["error"]) for row in fetched if "error" in row] == []

    overview = build_overview(study, out, CostEstimator(DeviceSpec(peak=1e12)))
    assert {item.kind for item in overview.missing} <= {"training data", "endpoint", "memory"}
    keep_one_task_of_each_layout(study, monkeypatch)
    results = [result for stage in study.stages for result in run_study(study, out, stage.name)]
    assert [(result.model, result.task, result.error) for result in results if result.status != "done"] == []
    statuses = list_statuses(study, out)
    assert {status.status for status in statuses} == {"done"}
    expected = [cell for stage in study.stages for cell in list_study_cells(study, stage)]
    assert [status.cell for status in statuses] == expected

    tables = build_reproduction_tables(study, out)
    rows = [row for table in tables for row in table.rows if row.cells]
    assert bool(rows) == (name in PAPERS)  # the plans with images have no published figure
    assert [row.name for row in rows if any(figure.verdict == "no tolerance stated" for figure in row.figures)] == []
    tasks = {(cell.stage, cell.task) for cell in expected}
    for table in tables:
        for row in table.rows:
            selection = study.reproduces.get(table.table.name, {}).get(row.name)
            run_columns = {task for stage, task in tasks if selection and stage == selection.stage}
            unmeasured = [f.column for f in row.figures if f.column in run_columns and f.measured is None]
            assert unmeasured == [], (table.table.name, row.name)
    assert name in ("search-adaptor", *IMAGE_PLANS) or any(
        figure.measured is not None for row in rows for figure in row.figures
    )
    reports = build_stage_reports(study, out)
    assert all(report.report.boards and not report.missing for report in reports)
    text = format_study_markdown(study, [(r.stage.name, r.report.boards, r.missing) for r in reports], tables)
    assert ("# The paper's figures and ours" in text) == (name in PAPERS)

    assert all(result.cached for result in run_study(study, out, study.stages[0].name))


def test_an_endpoint_stage_is_among_the_papers() -> None:
    assert any(uses_endpoint(stage) for name in PAPERS for stage in catalog.find_study(name).stages)
