"""Send finished cells to experiment trackers: one run per cell, with its settings, scores and cost.

Cells that were found on disk are sent too, so the same command sends again what a tracker lost. A tracker that fails
stops no cell: its error is raised after the last one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retbench.pipelines.experiment_trackers import TrackerError, log_facts, require_trackers, start_tracker
from retbench.records.cell import Cell
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record

TRACKERS_FOLDER = "trackers"  # in the results folder; it holds no record


def track_cells(cells: Iterator[Cell], names: tuple[str, ...], results: Path) -> Iterator[Cell]:
    """Yield all cells, and send each one that is done to the named trackers."""
    require_trackers(names)
    problems: dict[str, list[str]] = {}
    for cell in cells:
        yield cell
        for name in names if cell.record else ():
            try:
                _send_cell(name, read_record(Path(str(cell.record)) / RECORD_FILE), results / TRACKERS_FOLDER)
            except Exception as problem:  # noqa: BLE001  # a tracker is foreign code, and may raise anything
                problems.setdefault(name, []).append(f"{type(problem).__name__}: {problem}")
    if problems:
        raise TrackerError(
            "; ".join(f"{name} did not take {len(listed)} cells: {listed[0]}" for name, listed in problems.items()),
            "the records are saved: the same command with only these trackers sends them again",
        )


def _send_cell(name: str, record: Record, folder: Path) -> None:
    run = f"{record.model} {record.method} {record.task} {record.settings_id}".replace("/", "_")
    tracker = start_tracker(name, folder, run, describe_settings(record))
    try:
        log_facts(tracker, describe_metrics(record), step=0)
    finally:
        tracker.finish()


def describe_settings(record: Record) -> dict[str, Any]:
    """Return what a tracker knows a cell by. The command is left out: people type keys and addresses there."""
    return {
        "model": record.model,
        "method": record.method,
        "task": record.task,
        "suite": record.suite,
        "settings_id": record.settings_id,
        "settings": record.settings,
        "collection": record.collection,
        "machine": {key: value for key, value in record.machine.items() if key != "packages"},
        "created": record.created,
    }


def describe_metrics(record: Record) -> dict[str, Any]:
    """Return the scores and the cost of a cell, with the seconds of each phase."""
    cost = {f"cost/{name}": value for name, value in record.cost.items() if name != "seconds"}
    seconds = {f"seconds/{phase}": spent for phase, spent in record.cost["seconds"].items()}
    metric = str(record.cards["task"]["metric"])
    return {"main_score": record.scores[metric], **record.scores, **cost, **seconds}
