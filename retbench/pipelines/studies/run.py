"""Runs a study cell by cell; stores each cell in the results folder with a note of its status.

Finished cells are found on disk, so an interrupted study resumes. A failed cell is stored with its reason and tried
again in the next run.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.studies import training
from retbench.pipelines.studies.cells import (
    StudyCell,
    build_request,
    explain_optional_stage,
    group_cells,
    select_stages,
)
from retbench.pipelines.studies.status import write_note
from retbench.records.cell import Cell
from retbench.records.unexpected_errors import reraise_unexpected_errors

NEXT_STEP = "add what is missing and run the study again; other stages run now"


def run_study(study: Study, out: Path, stage_name: str | None = None, **output: Any) -> Iterator[Cell]:
    """Run all cells of a study, or of one stage; yield each result when it is ready."""
    for stage in select_stages(study, stage_name):
        command = f"retbench study run {study.name} --stage {stage.name}"
        for cells in group_cells(study, stage):
            skipped = {
                cell: reason for cell in cells if (reason := cell.needs or explain_optional_stage(stage, stage_name))
            }
            yield from (_build_skipped_result(cell, reason) for cell, reason in skipped.items())
            runnable_cells = {cell.task: cell for cell in cells if cell not in skipped}
            results = _run_cells(study, stage, runnable_cells, out=out, command=command, **output)
            if stage.options.get("rerank"):
                results = _note_last_results(results, runnable_cells, out)
            else:
                results = _note_results(results, runnable_cells, out)
            yield from results


def _note_results(results: Iterator[Cell], cells: dict[str, StudyCell], out: Path) -> Iterator[Cell]:
    for result in results:
        write_note(cells[result.task], result, out)
        yield result


def _note_last_results(results: Iterator[Cell], cells: dict[str, StudyCell], out: Path) -> Iterator[Cell]:
    """Write only the last result of each task: those before it are the first stage and the reranker's baselines."""
    last: Cell | None = None
    for result in results:
        if last and last.task != result.task:
            write_note(cells[last.task], last, out)
        yield result
        last = result
    if last:
        write_note(cells[last.task], last, out)


def _run_cells(
    study: Study,
    stage: Stage,
    runnable_cells: dict[str, StudyCell],
    log_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    **rest: Any,
) -> Iterator[Cell]:
    """Run the cells of one model; if the whole request fails, all its cells fail and the study continues."""
    if not runnable_cells:
        return
    first_cell, tasks = next(iter(runnable_cells.values())), tuple(cell.argument for cell in runnable_cells.values())
    try:
        if stage.verb == "finetune":
            training_options = {key: value for key, value in rest.items() if key not in ("out", "devices")}
            with reraise_unexpected_errors():
                model = training.train_model(study, stage, first_cell, log_metrics=log_metrics, **training_options)
            yield from evaluate(EvaluationRequest((model,), tasks, sample=stage.sample, overrides=stage.set, **rest))
        else:
            yield from evaluate(build_request(stage, first_cell.model, first_cell.method, tasks, **rest))
    except RetbenchError as error:
        facts: dict[str, Any] = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        yield from (
            Cell(first_cell.model, first_cell.method, task, "-", "-", "failed", **facts) for task in runnable_cells
        )


def _build_skipped_result(cell: StudyCell, reason: str) -> Cell:
    return Cell(cell.model, cell.method, cell.task, "-", "-", "skipped", error=reason, next_step=NEXT_STEP)
