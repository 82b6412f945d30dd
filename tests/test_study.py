"""Studies: every shipped plan is valid; a plan runs cell by cell, resumes, lists what it needs, and reports."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cards.recipe_keys import restore_key, translate_key
from retbench.cards.reranker_settings import parse_reranker
from retbench.cards.study import Stage, Study
from retbench.cli.main import app
from retbench.cli.study import _format_estimates
from retbench.errors import DataError
from retbench.pipelines.estimate_cost import DeviceSpec
from retbench.pipelines.studies import run as run_module
from retbench.pipelines.studies import status as story
from retbench.pipelines.studies.cells import build_request, list_study_cells
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.dry_run import estimate_study
from retbench.records.results_folder import ResultsFolder
from retbench.reports.published_tables import load_shipped_tables
from retbench.reports.study_tables import format_study_markdown
from retbench.system import checked_json
from retbench.system.user_config import get_cache_folder
from tests import small_collection, tiny_models

PLAN = """
name = "little"
title = "A little <b>study</b>"
questions = ["Is BM25 BM25?"]

[[stages]]
name = "words"
models = ["bm25"]
tasks = ["{task}", "{task}/../broken", "./nowhere"]

[[stages]]
name = "later"
verb = "teach"
models = ["bm25"]
tasks = ["{task}"]
options = {{ recipe = "quick" }}
"""


def _run_command(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["-q", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def _estimate(plan: Study, out: Path, stage: str | None = None) -> list[dict[str, Any]]:
    return list(estimate_study(plan, out, CostEstimator(DeviceSpec(peak=1e12)), stage))


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    folder = small_collection.write_folder(tmp_path / "small")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "corpus.jsonl").write_text("not json")
    file = tmp_path / "little.toml"
    file.write_text(PLAN.format(task=folder))
    return file


@pytest.mark.parametrize("plan", list(catalog.load_studies()), ids=lambda plan: plan.name)
def test_a_shipped_plan_names_only_cards_that_exist(plan: Study) -> None:
    tables = {table.name for table in load_shipped_tables()}
    assert set(plan.references) <= tables
    for stage in plan.stages:
        assert [name for name in stage.models if name not in catalog.load_model_cards()] == []
        assert [name for name in stage.suites if name not in catalog.load_suites()] == []
        assert [name for name in stage.tasks if name not in catalog.load_task_cards()] == []
        for word in stage.options.get("rerank", ()):
            parse_reranker(word)  # raises for an unknown reranker or key
        cells = list(list_study_cells(plan, stage))
        assert cells
        if stage.verb == "run":
            assert {slot.needs for slot in cells} == {None}


def test_the_committed_plan_of_the_adaptors_can_be_run_again() -> None:
    """docs/findings.md names it; a renamed key of plans would have it refused."""
    plan = catalog.find_study("results/adaptor/plan.toml")
    tasks = ("./scifact", "./cosqa", "./codetrans-java-cs", "stdlib-code")
    assert {stage.tasks for stage in plan.stages} == {tasks}


def test_the_study_of_specialised_models_has_the_eight_and_bm25() -> None:
    zero_shot = catalog.find_study("specialized-llms").stages[0]
    assert len(zero_shot.models) == 9
    assert "bm25" in zero_shot.models


def test_a_study_runs_resumes_and_lists_what_it_needs(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    code, output, _ = _run_command("study", "run", plan_file, "--out", out)
    assert code == 1  # one cell is done, one cell has a damaged collection
    assert "words: 1 of 3 done\n  ✓✗–  bm25 · bm25" in output
    assert "needs the task ./nowhere" in output
    assert "later: 0 of 1 done\n  –  bm25 · quick\n  needs `retbench teach`" in output
    cells = list(run_module.run_study(catalog.find_study(str(plan_file)), out))
    assert [(cell.task, cell.status) for cell in cells] == [
        ("./nowhere", "skipped"), ("small", "done"), ("broken", "failed"), ("small", "skipped"),
    ]  # fmt: skip
    assert cells[1].cached


def test_status_is_open_failed_done_and_open_again_when_the_record_is_gone(plan_file: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "r", catalog.find_study(str(plan_file))
    assert [state.status for state in story.list_statuses(plan, out)] == ["open", "open", "skipped", "skipped"]
    list(run_module.run_study(plan, out))
    assert [state.status for state in story.list_statuses(plan, out)] == ["done", "failed", "skipped", "skipped"]
    shutil.rmtree(ResultsFolder(out).list_record_files()[0].parent)
    assert [state.status for state in story.list_statuses(plan, out)] == ["open", "failed", "skipped", "skipped"]
    _, output, _ = _run_command("study", "status", plan_file, "--out", out, "--json")
    assert [slot["status"] for slot in json.loads(output)] == ["open", "failed", "skipped", "skipped"]


def test_two_machines_share_a_study_by_copying_folders(plan_file: Path, tmp_path: Path) -> None:
    plan = catalog.find_study(str(plan_file))
    list(run_module.run_study(plan, tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "both")
    assert story.list_statuses(plan, tmp_path / "both")[0].status == "done"


def test_a_request_that_is_refused_fails_its_cells_and_not_the_study(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    fine = Stage("fine", ("bm25",), tasks=(str(folder),))
    depth = Stage("refused", ("bm25",), tasks=(str(folder),), set={"depth": "ten"})
    cells = list(run_module.run_study(Study("s", "s", (depth, fine)), tmp_path / "r"))
    assert [cell.status for cell in cells] == ["failed", "done"]


def test_a_method_is_run_in_any_spelling() -> None:
    stage = Stage("s", ("minilm-l6", "bm25"), tasks=("scifact",), methods=("Last", "last:pooling=weighted,eos=false"))
    requested = [
        (slot.method, build_request(stage, slot.model, slot.method, ("scifact",)).methods)
        for slot in list_study_cells(Study("s", "s", (stage,)), stage)
    ]
    assert requested == [
        ("last", ("last",)),
        ("last:eos=false,pooling=weighted", ("last:eos=false,pooling=weighted",)),
        ("bm25", ()),
    ]


def test_an_invalid_option_skips_the_stage_and_not_the_study(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    fine = Stage("fine", ("bm25",), tasks=(str(folder),))
    stages = [replace(fine, name=key, options={key: value}) for key, value in {"devices": "2", "sample": 10}.items()]
    cells = list(run_module.run_study(Study("s", "s", (*stages, fine)), tmp_path / "r"))
    assert [cell.status for cell in cells] == ["skipped", "skipped", "done"]
    assert cells[0].error == "needs an option 'devices' (run has engine, rerank, weights)"


@pytest.mark.parametrize("change", [{"sample": 1}, {"set": {"depth": 20}}, {"options": {"rerank": ["ql"]}}])
def test_cells_of_an_earlier_plan_are_not_counted(tmp_path: Path, change: dict[str, Any]) -> None:
    stage = Stage("words", ("bm25",), tasks=(str(small_collection.write_folder(tmp_path / "small")),), sample=2)
    plan, edited, out = Study("s", "s", (stage,)), Study("s", "s", (replace(stage, **change),)), tmp_path / "r"
    list(run_module.run_study(plan, out))
    assert [state.status for state in story.list_statuses(edited, out)] == ["open"]
    assert story.build_stage_reports(edited, out)[0].report.boards == []
    list(run_module.run_study(edited, out))
    assert [state.status for state in story.list_statuses(edited, out)] == ["done"]


def test_a_status_file_without_its_request_still_counts(tmp_path: Path) -> None:
    stage = Stage("words", ("bm25",), tasks=(str(small_collection.write_folder(tmp_path / "small")),))
    plan, out = Study("s", "s", (stage,)), tmp_path / "r"
    list(run_module.run_study(plan, out))
    (note,) = (out / "studies").rglob("*.json")
    facts = checked_json.parse_checked_json(note.read_bytes())  # early notes had no checksum either
    del facts["slot"]["asked"]
    note.write_text(json.dumps(facts))
    assert [state.status for state in story.list_statuses(plan, out)] == ["done"]


def test_two_folders_with_the_same_name_are_distinguished(tmp_path: Path) -> None:
    first_folder, second_folder = (str(small_collection.write_folder(tmp_path / parent / "small")) for parent in "ab")
    plan = Study("s", "s", (Stage("words", ("bm25",), tasks=(first_folder, second_folder)),))
    assert [cell.status for cell in run_module.run_study(plan, tmp_path / "r")] == ["skipped", "done"]
    first, second = story.list_statuses(plan, tmp_path / "r")
    assert (first.status, second.reason) == (
        "done",
        f"needs another name for {second_folder}: {first_folder} is also called small",
    )


@pytest.mark.parametrize("content", [b"null", b"[]", b"{", b"\xff\xfe"])
def test_a_damaged_status_file_is_named(plan_file: Path, tmp_path: Path, content: bytes) -> None:
    plan = catalog.find_study(str(plan_file))
    note = next(list_study_cells(plan, plan.stages[0])).get_note_path(tmp_path)
    note.parent.mkdir(parents=True)
    note.write_bytes(content)
    with pytest.raises(DataError, match="is not a valid note of a study"):
        story.list_statuses(plan, tmp_path)


def test_a_finetune_stage_trains_once_and_evaluates_the_trained_model(
    tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    folder, model = small_collection.write_folder(tmp_path / "small"), tiny_models.build_model(tmp_path / "tiny")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=2"]}
    stage = Stage("trained", (str(model),), verb="finetune", tasks=(str(folder),), options=options)
    plan, steps = Study("s", "s", (stage,)), []
    (cell,) = run_module.run_study(plan, tmp_path / "r", log_metrics=lambda facts: steps.append(facts["step"]))
    assert (cell.status, cell.model) == ("done", "tiny-s-trained"), cell.error
    assert steps[0] == 1  # the progress of the training is shown
    (second,) = run_module.run_study(plan, tmp_path / "r")
    assert second.cached
    assert [state.status for state in story.list_statuses(plan, tmp_path / "r")] == ["done"]


def test_a_model_trained_without_adapters_is_refused_by_a_plan_with_adapters(
    tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    folder, model = small_collection.write_folder(tmp_path / "small"), tiny_models.build_model(tmp_path / "tiny")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=1", "lora=none"]}
    stage = Stage("trained", (str(model),), verb="finetune", tasks=(str(folder),), options=options)
    (cell,) = run_module.run_study(Study("s", "s", (stage,)), tmp_path / "r")
    assert cell.status == "done", cell.error
    changed = replace(stage, options={**options, "set": ["optimizer.max_steps=1"]})
    (cell,) = run_module.run_study(Study("s", "s", (changed,)), tmp_path / "r")
    assert "lora was None, now {" in (cell.error or "")


def test_a_training_that_was_started_by_finetune_is_found(tmp_path: Path, fresh_catalog: Callable[[], None]) -> None:
    """So a large model can be trained on several devices by torchrun, and the study only evaluates it."""
    folder, model = small_collection.write_folder(tmp_path / "small"), tiny_models.build_model(tmp_path / "tiny")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=2"]}
    stage = Stage("trained", (str(model),), verb="finetune", tasks=(str(folder),), options=options)
    words = ("finetune", folder, "--model", model, "--recipe", "quick", "--set", "optimizer.max_steps=2")
    code, _, stderr = _run_command(*words, "--name", "tiny-s-trained")
    assert code == 0, stderr
    card_file = next((get_cache_folder() / "model_cards").glob("tiny-s-trained/card.toml"))
    before = card_file.stat().st_mtime_ns
    (cell,) = run_module.run_study(Study("s", "s", (stage,)), tmp_path / "r")
    assert (cell.status, cell.model) == ("done", "tiny-s-trained"), cell.error
    assert card_file.stat().st_mtime_ns == before


def test_a_distilled_model_does_not_depend_on_the_folder_of_the_teacher_run(
    tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    folder, model, run = (
        small_collection.write_folder(tmp_path / "small"),
        tiny_models.build_model(tmp_path / "tiny"),
        tmp_path / "first.trec",
    )
    run.write_text("q4 Q0 owl 1 2.0 x\nq4 Q0 bee 2 1.0 x\nq5 Q0 compass 1 2.0 x\nq5 Q0 lens 2 1.0 x\n")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=1", f"teacher={run}"]}
    stage = Stage("taught", (str(model),), "finetune", tasks=(str(folder),), options=options)
    (cell,) = run_module.run_study(Study("s", "s", (stage,)), tmp_path / "r")
    assert cell.status == "done", cell.error
    changed = replace(stage, options={**options, "set": ["optimizer.max_steps=1", f"teacher={run}.gz"]})
    (cell,) = run_module.run_study(Study("s", "s", (changed,)), tmp_path / "r")
    assert "teacher was 'first.trec', now 'first.trec.gz'" in (cell.error or "")


def test_seeds_are_rows_of_their_own_with_mean_and_range(tmp_path: Path, fresh_catalog: Callable[[], None]) -> None:
    folder, model = small_collection.write_folder(tmp_path / "small"), tiny_models.build_model(tmp_path / "tiny")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=1"], "seeds": [1, 2]}
    zero = Stage("zero", (str(model),), tasks=(str(folder),), set={"max_length": 8})
    stage = Stage(
        "trained",
        (str(model),),
        "finetune",
        tasks=(str(folder),),
        options=options,
        compare_with=("zero",),
        set=zero.set,
    )
    plan, out = Study("s", "s", (zero, stage)), tmp_path / "r"
    training, before = (cell for cell in _estimate(plan, out, "trained") if cell["seed"] == 1)
    assert (training["training"], training["status"]) == ("tiny-s-trained-seed1", "open")
    assert min(training["tokens"], training["disk_bytes"], before["tokens"]) > 0
    cells = list(run_module.run_study(plan, out))
    assert [(cell.model, cell.status) for cell in cells] == [
        ("tiny", "done"), ("tiny-s-trained-seed1", "done"), ("tiny-s-trained-seed2", "done"),
    ]  # fmt: skip
    assert [state.status for state in story.list_statuses(plan, out)] == ["done"] * 3
    assert [cell["status"] for cell in _estimate(plan, out)] == ["done"] * 5
    zeroth, chapter = story.build_stage_reports(plan, out)
    assert [len(first_folder.report.boards[0].rows) for first_folder in (zeroth, chapter)] == [1, 3]
    text = format_study_markdown(plan, [("t", chapter.report.boards, ())], [])
    assert "| tiny on small by quick | mean | 2 |" in text
    changed = replace(stage, options={**options, "set": ["optimizer.max_steps=2"]})
    results = list(run_module.run_study(Study("s", "s", (changed,)), out))
    assert [cell.status for cell in results] == ["failed", "failed"]
    assert "optimizer.max_steps was 1, now 2" in (results[0].error or "")
    (chapter,) = story.build_stage_reports(Study("s", "s", (changed,)), out)
    assert "Failed: " in chapter.missing[0]


def test_an_optional_stage_runs_only_on_request(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    stage = Stage("more", ("bm25",), tasks=(str(folder),), optional=True)
    plan = Study("s", "s", (stage,))
    (cell,) = run_module.run_study(plan, tmp_path / "r")
    assert (cell.status, cell.error) == ("skipped", "optional stage, run it with --stage more")
    assert [first_folder["status"] for first_folder in _estimate(plan, tmp_path / "r")] == ["skipped"]
    assert [state.status for state in story.list_statuses(plan, tmp_path / "r")] == ["skipped"]
    assert [cell.status for cell in run_module.run_study(plan, tmp_path / "r", "more")] == ["done"]
    assert [state.status for state in story.list_statuses(plan, tmp_path / "r")] == ["done"]


def test_an_adaptor_stage_trains_one_adaptor_per_task(tmp_path: Path, fresh_catalog: Callable[[], None]) -> None:
    folders = [small_collection.write_folder(tmp_path / name) for name in ("one", "two")]
    model = tiny_models.build_model(tmp_path / "tiny")
    options = {"objective": "adaptor", "set": ["max_steps=2", "alpha=[0.1]", "beta=[0.0]"]}
    stage = Stage("moved", (str(model),), "finetune", tasks=tuple(map(str, folders)), options=options)
    plan = Study("s", "s", (stage,))
    costs = list(_estimate(plan, tmp_path / "r"))
    assert [cost.get("training", cost["task"]) for cost in costs] == [
        "tiny-s-moved-one", "one", "tiny-s-moved-two", "two",
    ]  # fmt: skip
    cells = list(run_module.run_study(plan, tmp_path / "r"))
    assert [(cell.model, cell.task, cell.status) for cell in cells] == [
        ("tiny-s-moved-one", "one", "done"), ("tiny-s-moved-two", "two", "done"),
    ]  # fmt: skip
    assert all(cell.cached for cell in run_module.run_study(plan, tmp_path / "r"))
    (chapter,) = story.build_stage_reports(plan, tmp_path / "r")
    rows = [row for board in chapter.report.boards for row in board.rows]  # a model per task, shown under one name
    assert [(row.model, list(row.runs)) for row in rows] == [("tiny (moved)", ["one"]), ("tiny (moved)", ["two"])]


def test_a_missing_recipe_is_listed() -> None:
    stage = Stage("s", ("minilm-l6",), verb="finetune", tasks=("scifact",), options={"dataset": "x", "recipe": "nope"})
    assert [slot.needs for slot in list_study_cells(Study("s", "s", (stage,)), stage)] == ["needs the recipe nope"]


def test_one_stage_can_be_run_alone(plan_file: Path, tmp_path: Path) -> None:
    plan = catalog.find_study(str(plan_file))
    assert [cell.status for cell in run_module.run_study(plan, tmp_path, "later")] == ["skipped"]
    assert _run_command("study", "run", plan_file, "--out", tmp_path, "--stage", "nope")[0] == 2


def test_the_dry_run_counts_cells_and_runs_nothing(plan_file: Path, tmp_path: Path) -> None:
    code, output, _ = _run_command("study", "run", plan_file, "--out", tmp_path / "r", "--dry-run")
    assert code == 0
    assert "4 cells: 1 open, 1 not here, 2 skipped" in output
    assert not (tmp_path / "r").exists()


def test_the_list_has_its_titles_below_each_other() -> None:
    lines = CliRunner().invoke(app, ["study", "list"]).stdout.splitlines()
    titles = {study.name: study.title for study in catalog.load_studies()}
    assert {line.index(titles[line.split()[0]]) for line in lines} == {max(map(len, titles)) + 2}


def test_the_dry_run_counts_trainings_that_wait_for_their_data() -> None:
    estimates = [{"stage": "a", "training": f"m{n}", "status": s} for n, s in enumerate(["not here", "open", "done"])]
    facts: dict[str, Any] = {"seed": None, "tokens": 1, "disk_bytes": 1, "seconds": 1.0}
    lines = _format_estimates([{**facts, **estimate} for estimate in estimates]).splitlines()
    assert "3 trainings: 1 open, 1 done, 1 not here" in lines


def test_the_report_has_the_studys_own_tables(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    list(run_module.run_study(catalog.find_study(str(plan_file)), out))
    code, text, _ = _run_command("study", "report", plan_file, "--results", out)
    assert code == 0
    assert text.startswith("# A little &lt;b&gt;study&lt;/b&gt;\n\n1. Is BM25 BM25?\n\n# words")
    assert "| 1 | a | bm25 | bm25 |" in text
    assert "Skipped: needs \\`retbench teach\\`." in text
    _, tables, _ = _run_command("study", "report", plan_file, "--results", out, "--format", "latex")
    assert "\\begin{tabular}" in tables
    assert _run_command("study", "report", plan_file, "--results", out, "--out", tmp_path / "s.md")[0] == 0
    assert (tmp_path / "s.md").read_text() == text
    assert _run_command("study", "report", plan_file, "--results", out, "--out", tmp_path / "not" / "s.md")[0] == 2


def test_study_new_writes_a_plan_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_collection.write_folder(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    assert _run_command("study", "new", "mine", "--model", "bm25", "--task", "./small")[0] == 0
    assert _run_command("study", "run", "./mine.toml")[0] == 0
    assert _run_command("study", "new", "mine", "--model", "bm25", "--task", "./small")[0] == 2
    assert _run_command("study", "new", "other", "--model", "bm25")[0] == 2


def test_a_new_plan_has_its_title_and_its_path_is_printed(tmp_path: Path) -> None:
    file, words = tmp_path / "p.toml", ("study", "new", "mine", "--model", "bm25", "--task", "scifact")
    code, output, _ = _run_command(*words, "--title", "A plan \U0001f600", "--out", file)
    assert (code, catalog.find_study(str(file)).title) == (0, "A plan \U0001f600")
    assert f"retbench study run {file} --dry-run" in output
    code, _, stderr = _run_command(*words, "--out", tmp_path / "not" / "there.toml")
    assert (code, stderr.splitlines()[0]) == (2, f"error: there is no folder {tmp_path / 'not'}")


@pytest.mark.parametrize(
    ("name", "stage_name", "digest"),
    [("specialized-mini", "fine-tuned", "c5bf58d261b1"), ("specialized-mini", "zero-shot", "f790b9f0b401"),
     ("context-length", "crops", "808a20c21082")],
)  # fmt: skip
def test_renamed_recipe_keys_keep_the_notes_of_finished_cells(name: str, stage_name: str, digest: str) -> None:
    study = catalog.find_study(name)
    stage = next(stage for stage in study.stages if stage.name == stage_name)
    assert {cell.to_json()["asked"] for cell in list_study_cells(study, stage)} == {digest}


@pytest.mark.parametrize("name", ["adaptor-losses", "llm-ql", "specialized-mini"])
def test_every_recipe_option_of_a_shipped_study_has_one_old_key(name: str) -> None:
    for stage in catalog.find_study(name).stages:
        table = str(stage.options.get("objective", ""))
        for key in (change.split("=")[0] for change in stage.options.get("set", ())):
            assert translate_key(restore_key(key, table), table) == key


def test_stages_with_the_same_training_share_one_model(tmp_path: Path, fresh_catalog: Callable[[], None]) -> None:
    folder, model = small_collection.write_folder(tmp_path / "small"), tiny_models.build_model(tmp_path / "tiny")
    options = {"dataset": str(folder), "recipe": "quick", "set": ["optimizer.max_steps=1"]}
    first = Stage("first", (str(model),), "finetune", tasks=(str(folder),), options=options)
    shorter = replace(first, name="shorter", set={"max_length": 8})
    other = replace(first, name="other", options={**options, "set": ["optimizer.max_steps=2"]})
    plan = Study("s", "s", (first, shorter, other))
    trainings = [cost["training"] for cost in _estimate(plan, tmp_path / "r") if "training" in cost]
    assert trainings == ["tiny-s-first", "tiny-s-other"]
    cells = list(run_module.run_study(plan, tmp_path / "r"))
    assert [(cell.model, cell.status) for cell in cells] == [
        ("tiny-s-first", "done"), ("tiny-s-first", "done"), ("tiny-s-other", "done"),
    ]  # fmt: skip
    assert cells[0].settings_id != cells[1].settings_id
