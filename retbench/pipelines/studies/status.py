"""The status of a study's cells, read from the notes of its runs, and the study's report.

The notes are in `studies/<name>/` in the results folder, one file per cell. So two machines can share a study, and
their folders can be merged by copying.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from retbench.cards.study import Stage, Study
from retbench.errors import DataError
from retbench.pipelines.report import IMPORTED_TABLES_FOLDER, Report
from retbench.pipelines.studies.cells import StudyCell, explain_optional_stage, list_study_cells
from retbench.records.cell import Cell
from retbench.records.results_folder import RECORD_FILE, ResultsScan, read_record
from retbench.records.scored_run import ScoredRun, load_scored_run
from retbench.reports.leaderboard import build_leaderboards
from retbench.reports.published_tables import load_published_rows
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically


@dataclass(frozen=True)
class StudyCellStatus:
    """The status of a cell: done, failed, skipped or open."""

    cell: StudyCell
    status: str
    score: float | None = None
    reason: str | None = None
    record: str | None = None  # relative to the results folder


def write_note(cell: StudyCell, result: Cell, out: Path) -> None:
    """Write a cell's status to its note."""
    record_path = Path(result.record).relative_to(out).as_posix() if result.record else None
    file = cell.get_note_path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"slot": cell.to_json(), "status": result.status, "record": record_path, "reason": result.error}
    write_file_atomically(file, encode_checked_json({**facts, "score": result.main_score}))


def list_statuses(study: Study, out: Path, stage_name: str | None = None) -> list[StudyCellStatus]:
    """The status of every cell, from the notes alone; an optional stage is open if it is named."""
    cells = [cell for stage in study.stages for cell in list_study_cells(study, stage)]
    optional_reasons = {stage.name: explain_optional_stage(stage, stage_name) for stage in study.stages}
    return [
        StudyCellStatus(cell, "skipped", reason=cell.needs)
        if cell.needs
        else _read_status(cell, out, optional_reasons[cell.stage])
        for cell in cells
    ]


def _read_status(cell: StudyCell, out: Path, optional_reason: str | None) -> StudyCellStatus:
    file = cell.get_note_path(out)
    not_run = StudyCellStatus(cell, "skipped" if optional_reason else "open", reason=optional_reason)
    if not file.is_file():
        return not_run
    try:
        facts = parse_checked_json(file.read_bytes())
        status = StudyCellStatus(cell, facts["status"], facts["score"], facts["reason"], facts["record"])
        is_outdated = cell.to_json() | facts["slot"] != cell.to_json()  # the study has changed since
    except (ValueError, TypeError, KeyError) as problem:
        raise DataError(f"{file} is not a valid note of a study", "remove it and run the study again") from problem
    is_record_missing = status.record is not None and not (out / status.record / RECORD_FILE).is_file()
    return not_run if is_record_missing or is_outdated else status


@dataclass(frozen=True)
class StageReport:
    """One stage of a study's report."""

    stage: Stage
    report: Report
    missing: tuple[str, ...]  # skipped and failed cells, with reasons


def build_stage_reports(study: Study, out: Path) -> list[StageReport]:
    """The study's runs by stage, beside the rows of the stages in `compare_with` and the published tables it names."""
    statuses = list_statuses(study, out)
    published_rows = (
        load_published_rows(out / IMPORTED_TABLES_FOLDER, only=study.references) if study.references else []
    )
    stage_reports = []
    for stage in study.stages:
        scan = ResultsScan()
        shown_stages = (stage.name, *stage.compare_with)
        cells_by_record = {
            status.record: status.cell for status in statuses if status.cell.stage in shown_stages and status.record
        }
        for record_path, cell in sorted(cells_by_record.items()):
            try:
                scan.runs.append(_give_task_models_one_name(study, cell, _load_run(out / record_path)))
            except DataError as problem:
                scan.problems.append(problem)
        missing_cells = [status for status in statuses if status.cell.stage == stage.name and status.reason]
        missing = tuple(dict.fromkeys(map(_describe_missing_cell, missing_cells)))
        stage_reports.append(
            StageReport(stage, Report(scan, build_leaderboards(scan.runs, [], published_rows)), missing)
        )
    return stage_reports


def _describe_missing_cell(status: StudyCellStatus) -> str:
    """The reason of a skipped cell; the name and the reason of a failed cell."""
    if status.status == "skipped":
        return f"Skipped: {status.reason}"
    return f"Failed: {status.cell.model} · {status.cell.method} on {status.cell.task}: {status.reason}"


def _give_task_models_one_name(study: Study, cell: StudyCell, run: ScoredRun) -> ScoredRun:
    """Give the models that a stage trains per task one name, so that they share a row."""
    stage = next(stage for stage in study.stages if stage.name == cell.stage)
    if not stage.trains_per_task:
        return run
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    name = f"{run.record.cards['model']['parent']} ({stage.name}{seed})"
    return replace(run, record=replace(run.record, model=name))


def _load_run(folder: Path) -> ScoredRun:
    return load_scored_run(folder, read_record(folder / RECORD_FILE))
