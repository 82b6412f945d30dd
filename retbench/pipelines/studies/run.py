"""The study story: a plan is run cell by cell, each kept in the results folder and noted as the study's own.

A finished cell is found on disk, so an interrupted study goes on where it stopped; a failed one fills its place with
the reason and is tried again the next time.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError, UsageError
from retbench.pipelines.evaluation import dry_run as estimate
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import Request
from retbench.pipelines.studies import training
from retbench.pipelines.studies.cells import Slot, request, slots, unasked
from retbench.pipelines.studies.status import write_note
from retbench.records.cell import Cell

NEXT = "the stage runs once that is there; the others do now"
KNOWN = ("documents", "queries", "tokens", "seconds", "disk_bytes")


def run(plan: Study, out: Path, only: str | None = None, **show: Any) -> Iterator[Cell]:
    """Every cell of the plan as soon as it is known."""
    for stage in chosen(plan, only):
        command = f"retbench study run {plan.name} --stage {stage.name}"
        for row in _rows(plan, stage):
            lost = {slot: reason for slot in row if (reason := slot.needs or unasked(stage, only))}
            yield from (_skipped(slot, reason) for slot, reason in lost.items())
            ready = {slot.task: slot for slot in row if slot not in lost}
            for cell in _cells(plan, stage, ready, out=out, command=command, **show):
                write_note(ready[cell.task], cell, out)
                yield cell


def _cells(plan: Study, stage: Stage, ready: dict[str, Slot], **rest: Any) -> Iterator[Cell]:
    """A row's cells; a request that is refused as a whole fails them all, and the study goes on."""
    if not ready:
        return
    one, tasks = next(iter(ready.values())), tuple(slot.argument for slot in ready.values())
    try:
        if stage.verb == "finetune":
            shown = {key: value for key, value in rest.items() if key not in ("out", "devices")}
            model = training.trained(plan, stage, one, **shown)
            yield from evaluate(Request((model,), tasks, sample=stage.sample, overrides=stage.set, **rest))
        else:
            yield from evaluate(request(stage, one.model, one.method, tasks, **rest))
    except RetbenchError as error:
        facts: dict[str, Any] = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        yield from (Cell(one.model, one.method, task, "-", "-", "failed", **facts) for task in ready)


def _rows(plan: Study, stage: Stage) -> Iterator[list[Slot]]:
    """The slots of one model, method and seed at a time, so that the model is opened once."""

    def row(slot: Slot) -> tuple[Any, ...]:
        return (slot.seed, slot.model, slot.method, slot.argument if stage.by_task else None)

    for _, found in itertools.groupby(slots(plan, stage), key=row):
        yield list(found)


def chosen(plan: Study, only: str | None) -> tuple[Stage, ...]:
    """All stages, or the one named."""
    found = tuple(stage for stage in plan.stages if only in (None, stage.name))
    if not found:
        names = ", ".join(stage.name for stage in plan.stages)
        raise UsageError(f"{plan.name} has no stage {only!r}", f"its stages: {names}")
    return found


def _skipped(slot: Slot, reason: str) -> Cell:
    return Cell(slot.model, slot.method, slot.task, "-", "-", "skipped", error=reason, next_step=NEXT)


def forecast(plan: Study, out: Path, only: str | None = None) -> Iterator[dict[str, Any]]:
    """What every slot, and every training before it, would cost where the data and the weights are here."""
    for stage in chosen(plan, only):
        known: dict[str, Any] = {}
        for row in _rows(plan, stage):
            lost = {slot: reason for slot in row if (reason := slot.needs or unasked(stage, only))}
            yield from ({**asdict(slot), "status": "skipped", "reason": reason} for slot, reason in lost.items())
            ready = [slot for slot in row if slot not in lost]
            if ready and stage.verb == "run":
                yield from _costs(ready, partial(_asked, stage, out))
            elif ready:
                yield from _trained(plan, stage, ready, out, known)


def _asked(stage: Stage, out: Path, row: list[Slot]) -> list[dict[str, Any]]:
    tasks = tuple(slot.argument for slot in row)
    return list(estimate.dry_run(request(stage, row[0].model, row[0].method, tasks, out=out)))


def _trained(plan: Study, stage: Stage, row: list[Slot], out: Path, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A training and its cells; other seeds cost the same and are not measured again."""
    try:
        cost = training.cost(plan, stage, row, known)
    except RetbenchError as error:
        yield from ({**asdict(slot), "status": "not here", "reason": error.cause} for slot in row)
        return
    yield cost
    key = f"{row[0].model} {cost['status']} {row[0].seed if cost['status'] == 'done' else ''} {row[0].argument}"
    if key not in known:
        known[key] = _costs(row, partial(training.scored, plan, stage, out=out))
    yield from ({**cell, "seed": slot.seed} for slot, cell in zip(row, known[key], strict=True))


def _costs(row: list[Slot], dry_run: Callable[[list[Slot]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Slot by slot; together where all is here, so that the model is opened and timed only once."""
    try:
        cells = dry_run(row)
    except RetbenchError as error:
        if len(row) == 1:
            return [{**asdict(row[0]), "status": "not here", "reason": error.cause}]
        return [cost for slot in row for cost in _costs([slot], dry_run)]
    return [_cost(slot, cell) for slot, cell in zip(row, cells, strict=True)]


def _cost(slot: Slot, cell: dict[str, Any]) -> dict[str, Any]:
    known = {key: cell[key] for key in KNOWN if key in cell}
    return {**asdict(slot), "status": "done" if cell["cached"] else "open", **known}
