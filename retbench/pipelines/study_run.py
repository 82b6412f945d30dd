"""The study story: a plan is run cell by cell, each kept in the results folder and noted as the study's own.

A finished cell is found on disk, so an interrupted study goes on where it stopped; a failed one fills its place with
the reason and is tried again the next time.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.recipe import changed
from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError, UsageError
from retbench.pipelines import plan as estimate
from retbench.pipelines.evaluate import evaluate
from retbench.pipelines.request import Request
from retbench.pipelines.slots import Slot, request, slots
from retbench.pipelines.study import write_note
from retbench.records.cell import Cell

TRAINING = "training is estimated by retbench finetune --dry-run"
NEXT = "the stage runs once that is there; the others do now"


def run(plan: Study, out: Path, only: str | None = None, **show: Any) -> Iterator[Cell]:
    """Every cell of the plan as soon as it is known."""
    for stage in chosen(plan, only):
        command = f"retbench study run {plan.name} --stage {stage.name}"
        for (model, method), row in _rows(plan, stage):
            yield from (_skipped(slot, slot.needs) for slot in row if slot.needs)
            ready = {slot.task: slot for slot in row if not slot.needs}
            for cell in _cells(plan, stage, model, method, ready, out=out, command=command, **show):
                write_note(ready[cell.task], cell, out)
                yield cell


def _cells(plan: Study, stage: Stage, model: str, method: str, ready: dict[str, Slot], **rest: Any) -> Iterator[Cell]:
    """A row's cells; a request that is refused as a whole fails them all, and the study goes on."""
    tasks = tuple(slot.argument for slot in ready.values())
    try:
        if tasks and stage.verb == "finetune":
            yield from evaluate(Request((_trained(plan, stage, model, **rest),), tasks, sample=stage.sample, **rest))
        elif tasks:
            yield from evaluate(request(stage, model, method, tasks, **rest))
    except RetbenchError as error:
        facts: dict[str, Any] = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        yield from (Cell(model, method, task, "-", "-", "failed", **facts) for task in ready)


def _trained(plan: Study, stage: Stage, model: str, **rest: Any) -> str:
    """The name of the model a stage trains; found where it is finished, gone on with where it is not."""
    from retbench.pipelines.finetune import finetune
    from retbench.pipelines.lesson import Wish

    changes = dict(word.split("=", 1) for word in stage.options.get("set", ()))
    recipe = changed(catalog.recipe(stage.options["recipe"]), changes)
    name = f"{catalog.model(model).name}-{plan.name}-{stage.name}"
    shown = {key: value for key, value in rest.items() if key != "out"}
    split = stage.options.get("split", "train")
    return finetune(Wish(stage.options["dataset"], model, recipe, name, split=split, resume=True, **shown)).name


def _rows(plan: Study, stage: Stage) -> Iterator[tuple[tuple[str, str], list[Slot]]]:
    """The slots of one model and method at a time, so that the model is opened once."""
    for key, row in itertools.groupby(slots(plan, stage), key=lambda slot: (slot.model, slot.method)):
        yield key, list(row)


def chosen(plan: Study, only: str | None) -> tuple[Stage, ...]:
    """All stages, or the one named."""
    found = tuple(stage for stage in plan.stages if only in (None, stage.name))
    if not found:
        names = ", ".join(stage.name for stage in plan.stages)
        raise UsageError(f"{plan.name} has no stage {only!r}", f"its stages: {names}")
    return found


def _skipped(slot: Slot, reason: str | None) -> Cell:
    return Cell(slot.model, slot.method, slot.task, "-", "-", "skipped", error=reason, next_step=NEXT)


def forecast(plan: Study, out: Path, only: str | None = None) -> Iterator[dict[str, Any]]:
    """What every slot would cost: tokens, seconds and disk where the data and the weights are here."""
    for stage in chosen(plan, only):
        for _, row in _rows(plan, stage):
            yield from ({**asdict(slot), "status": "skipped", "reason": slot.needs} for slot in row if slot.needs)
            ready = [slot for slot in row if not slot.needs]
            if stage.verb != "run":
                yield from ({**asdict(slot), "status": "open", "reason": TRAINING} for slot in ready)
                continue
            costs = _costs(stage, ready, out) if ready else []
            yield from ({**asdict(slot), **cost} for slot, cost in zip(ready, costs, strict=True))


def _costs(stage: Stage, row: list[Slot], out: Path) -> list[dict[str, Any]]:
    """Slot by slot; together where all is here, so that the model is opened and timed only once."""
    tasks = tuple(slot.argument for slot in row)
    try:
        cells = list(estimate.dry_run(request(stage, row[0].model, row[0].method, tasks, out=out)))
    except RetbenchError as error:
        if len(row) == 1:
            return [{"status": "not here", "reason": error.cause}]
        return [cost for slot in row for cost in _costs(stage, [slot], out)]
    known = ("documents", "queries", "tokens", "seconds", "disk_bytes")
    return [
        {"status": "done" if cell["cached"] else "open", **{key: cell[key] for key in known if key in cell}}
        for cell in cells
    ]
