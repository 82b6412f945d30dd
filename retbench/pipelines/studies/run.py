"""Runs a study cell by cell; stores each cell in the results folder with a note of its status.

Finished cells are found on disk, so an interrupted study resumes. A failed cell is stored with its reason and tried
again in the next run.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError, UsageError
from retbench.pipelines.evaluation.dry_run import dry_run
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.studies import training
from retbench.pipelines.studies.cells import StudyCell, build_request, explain_optional_stage, list_study_cells
from retbench.pipelines.studies.status import write_note
from retbench.records.cell import Cell

NEXT_STEP = "add what is missing and run the study again; other stages run now"
COST_KEYS = ("documents", "queries", "tokens", "seconds", "disk_bytes")


def run_study(study: Study, out: Path, stage_name: str | None = None, **output: Any) -> Iterator[Cell]:
    """Run all cells of a study, or of one stage; yield each result when it is ready."""
    for stage in select_stages(study, stage_name):
        command = f"retbench study run {study.name} --stage {stage.name}"
        for cells in _group_cells(study, stage):
            skipped = {
                cell: reason for cell in cells if (reason := cell.needs or explain_optional_stage(stage, stage_name))
            }
            yield from (_build_skipped_result(cell, reason) for cell, reason in skipped.items())
            runnable_cells = {cell.task: cell for cell in cells if cell not in skipped}
            for result in _run_cells(study, stage, runnable_cells, out=out, command=command, **output):
                write_note(runnable_cells[result.task], result, out)
                yield result


def _run_cells(study: Study, stage: Stage, runnable_cells: dict[str, StudyCell], **rest: Any) -> Iterator[Cell]:
    """Run the cells of one model; if the whole request fails, all its cells fail and the study continues."""
    if not runnable_cells:
        return
    first_cell, tasks = next(iter(runnable_cells.values())), tuple(cell.argument for cell in runnable_cells.values())
    try:
        if stage.verb == "finetune":
            training_options = {key: value for key, value in rest.items() if key not in ("out", "devices")}
            model = training.train_model(study, stage, first_cell, **training_options)
            yield from evaluate(EvaluationRequest((model,), tasks, sample=stage.sample, overrides=stage.set, **rest))
        else:
            yield from evaluate(build_request(stage, first_cell.model, first_cell.method, tasks, **rest))
    except RetbenchError as error:
        facts: dict[str, Any] = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        yield from (
            Cell(first_cell.model, first_cell.method, task, "-", "-", "failed", **facts) for task in runnable_cells
        )


def _group_cells(study: Study, stage: Stage) -> Iterator[list[StudyCell]]:
    """Group the cells by model, method and seed, so that each model is loaded once."""

    def build_group_key(cell: StudyCell) -> tuple[Any, ...]:
        return (cell.seed, cell.model, cell.method, cell.argument if stage.trains_per_task else None)

    for _, cells in itertools.groupby(list_study_cells(study, stage), key=build_group_key):
        yield list(cells)


def select_stages(study: Study, stage_name: str | None) -> tuple[Stage, ...]:
    """All stages, or only the named one."""
    stages = tuple(stage for stage in study.stages if stage_name in (None, stage.name))
    if not stages:
        names = ", ".join(stage.name for stage in study.stages)
        raise UsageError(f"{study.name} has no stage {stage_name!r}", f"choose one of its stages: {names}")
    return stages


def _build_skipped_result(cell: StudyCell, reason: str) -> Cell:
    return Cell(cell.model, cell.method, cell.task, "-", "-", "skipped", error=reason, next_step=NEXT_STEP)


def estimate_study(study: Study, out: Path, stage_name: str | None = None) -> Iterator[dict[str, Any]]:
    """Estimate the cost of every cell and training whose data and weights are on this machine."""
    for stage in select_stages(study, stage_name):
        measured_costs: dict[str, Any] = {}
        for cells in _group_cells(study, stage):
            skipped = {
                cell: reason for cell in cells if (reason := cell.needs or explain_optional_stage(stage, stage_name))
            }
            yield from ({**cell.to_json(), "status": "skipped", "reason": reason} for cell, reason in skipped.items())
            runnable = [cell for cell in cells if cell not in skipped]
            if runnable and stage.verb == "run":
                yield from _estimate_cells(runnable, partial(_dry_run_cells, stage, out))
            elif runnable:
                yield from _estimate_training_and_cells(study, stage, runnable, out, measured_costs)


def _dry_run_cells(stage: Stage, out: Path, cells: list[StudyCell]) -> list[dict[str, Any]]:
    tasks = tuple(cell.argument for cell in cells)
    return list(dry_run(build_request(stage, cells[0].model, cells[0].method, tasks, out=out)))


def _estimate_training_and_cells(
    study: Study, stage: Stage, cells: list[StudyCell], out: Path, measured_costs: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Estimate a training and its cells; other seeds cost the same and are measured once."""
    try:
        cost = training.estimate_training(study, stage, cells, measured_costs)
    except RetbenchError as error:
        yield from ({**cell.to_json(), "status": "not here", "reason": error.cause} for cell in cells)
        return
    yield cost
    key = f"{cells[0].model} {cost['status']} {cells[0].seed if cost['status'] == 'done' else ''} {cells[0].argument}"
    if key not in measured_costs:
        measured_costs[key] = _estimate_cells(cells, partial(training.dry_run_cells, study, stage, out=out))
    yield from ({**estimate, "seed": cell.seed} for cell, estimate in zip(cells, measured_costs[key], strict=True))


def _estimate_cells(
    cells: list[StudyCell], run_estimate: Callable[[list[StudyCell]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Estimate all cells together, so that the model is timed once; one by one if something is not on this machine."""
    try:
        estimates = run_estimate(cells)
    except RetbenchError as error:
        if len(cells) == 1:
            return [{**cells[0].to_json(), "status": "not here", "reason": error.cause}]
        return [cost for cell in cells for cost in _estimate_cells([cell], run_estimate)]
    return [_build_estimate(cell, estimate) for cell, estimate in zip(cells, estimates, strict=True)]


def _build_estimate(cell: StudyCell, estimate: dict[str, Any]) -> dict[str, Any]:
    costs = {key: estimate[key] for key in COST_KEYS if key in estimate}
    return {**cell.to_json(), "status": "done" if estimate["cached"] else "open", **costs}
