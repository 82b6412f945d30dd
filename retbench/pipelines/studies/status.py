"""What became of a study: the notes its run left beside the results, and its own tables made from them.

The notes lie in `studies/<name>/` below the results folder, one file a cell, so two machines may share a study and
their folders be merged by copying.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retbench.cards.study import Stage, Study
from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError
from retbench.pipelines.report import IMPORTED, Report
from retbench.pipelines.studies.cells import Slot, slots, unasked
from retbench.records.cell import Cell
from retbench.records.results_folder import RECORD, Scan, read
from retbench.records.scored_run import Kept, kept
from retbench.reports.leaderboard import blocks
from retbench.reports.published_tables import published
from retbench.store.shard_store import write_file_atomically


@dataclass(frozen=True)
class State:
    """What became of a slot: done, failed, skipped or open."""

    slot: Slot
    status: str
    score: float | None = None
    reason: str | None = None
    record: str | None = None  # relative to the results folder


def write_note(slot: Slot, cell: Cell, out: Path) -> None:
    """Remember what became of a slot."""
    place = Path(cell.record).relative_to(out).as_posix() if cell.record else None
    file = slot.note(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"slot": asdict(slot), "status": cell.status, "record": place, "reason": cell.error}
    write_file_atomically(file, json.dumps({**facts, "score": cell.main_score}, indent=1, ensure_ascii=False).encode())


def states(plan: Study, out: Path) -> list[State]:
    """Every slot and what became of it, from the notes alone."""
    found = [slot for stage in plan.stages for slot in slots(plan, stage)]
    left = {stage.name: unasked(stage, None) for stage in plan.stages}
    return [
        State(slot, "skipped", reason=slot.needs) if slot.needs else _state(slot, out, left[slot.stage])
        for slot in found
    ]


def _state(slot: Slot, out: Path, left: str | None) -> State:
    file, waiting = slot.note(out), State(slot, "skipped" if left else "open", reason=left)
    if not file.is_file():
        return waiting
    try:
        facts = parse_json(file.read_text(encoding="utf-8"))
        state = State(slot, facts["status"], facts["score"], facts["reason"], facts["record"])
        other = asdict(slot) | facts["slot"] != asdict(slot)  # of an earlier edition of the plan
    except (ValueError, TypeError, KeyError) as problem:
        raise DataError(f"{file} is not a study's note", "remove it and run the study again") from problem
    gone = state.record is not None and not (out / state.record / RECORD).is_file()
    return waiting if gone or other else state


@dataclass(frozen=True)
class Chapter:
    """One stage of a study's report."""

    stage: Stage
    report: Report
    lost: tuple[str, ...]  # what was skipped or failed, and why


def chapters(plan: Study, out: Path) -> list[Chapter]:
    """The study's own runs, stage by stage, beside other stages' rows and the published tables it names."""
    found = states(plan, out)
    rows = published(out / IMPORTED, only=plan.references) if plan.references else []
    made = []
    for stage in plan.stages:
        scan = Scan()
        shown = (stage.name, *stage.beside)
        places = {state.record: state.slot for state in found if state.slot.stage in shown and state.record}
        for place, slot in sorted(places.items()):
            try:
                scan.runs.append(_together(plan, slot, _kept(out / place)))
            except DataError as problem:
                scan.problems.append(problem)
        lost = tuple(dict.fromkeys(_lost(state) for state in found if state.slot.stage == stage.name and state.reason))
        made.append(Chapter(stage, Report(scan, blocks(scan.runs, [], rows)), lost))
    return made


def _lost(state: State) -> str:
    """A skipped cell's reason says all; a failed one is named."""
    if state.status == "skipped":
        return f"Skipped: {state.reason}"
    return f"Failed: {state.slot.model} · {state.slot.method} on {state.slot.task}: {state.reason}"


def _together(plan: Study, slot: Slot, run: Kept) -> Kept:
    """The models that a stage trains task by task bear one name here, so that they are one row."""
    stage = next(stage for stage in plan.stages if stage.name == slot.stage)
    if not stage.by_task:
        return run
    seed = "" if slot.seed is None else f", seed {slot.seed}"
    called = f"{run.record.cards['model']['parent']} ({stage.name}{seed})"
    return replace(run, record=replace(run.record, model=called))


def _kept(folder: Path) -> Kept:
    return kept(folder, read(folder / RECORD))
