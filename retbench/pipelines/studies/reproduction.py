"""Puts the cells of a study beside the published figures that they reproduce.

The plan says which cells stand beside which row (`reproduces`). A cell counts if its record holds the table's metric
and all queries were used.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.study import CellSelection, Stage, Study
from retbench.errors import DataError, UsageError, suggest_names
from retbench.pipelines.report import IMPORTED_TABLES_FOLDER
from retbench.pipelines.studies.status import StudyCellStatus, list_statuses
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.reports.published_tables import PublishedRow, load_published_rows
from retbench.reports.reproduction import AVERAGE, ReproducedFigure, ReproducedRow, ReproductionTable
from retbench.reports.suite_average import compute_suite_mean, group_tasks


def build_reproduction_tables(study: Study, out: Path) -> list[ReproductionTable]:
    """Every published table that the study names, with our figures where its cells are done."""
    check_selections(study, out)
    measured = MeasuredScores(list_statuses(study, out), out)
    rows_by_table: dict[str, list[PublishedRow]] = {}
    if study.references:
        for row in load_published_rows(out / IMPORTED_TABLES_FOLDER, only=study.references):
            rows_by_table.setdefault(row.table.name, []).append(row)
    return [
        ReproductionTable(
            rows[0].table,
            tuple(_build_row(row, study.reproduces.get(name, {}).get(row.model), measured) for row in rows),
        )
        for name, rows in rows_by_table.items()
    ]


def check_selections(study: Study, out: Path) -> None:
    """Raise an error for a selection that names a table, row, stage or model which does not exist."""
    stages = {stage.name: stage for stage in study.stages}
    for table, selections in study.reproduces.items():
        if table not in study.references:
            raise UsageError(f"{study.name}: {table} in [reproduces] is no table of its references", "add it there")
        row_names = {row.model for row in load_published_rows(out / IMPORTED_TABLES_FOLDER, only=(table,))}
        for row, selection in selections.items():
            where = f"{study.name}, [reproduces.{table}], row {row!r}"
            if row not in row_names:
                raise UsageError(f"{where}: the table has no such row", suggest_names(row, row_names))
            for part in selection.list_parts():
                _check_stages(part, stages, where)


def _check_stages(selection: CellSelection, stages: dict[str, Stage], where: str) -> None:
    for name in filter(None, (selection.stage, selection.minus)):
        if name not in stages:
            raise UsageError(f"{where}: there is no stage {name!r}", suggest_names(name, stages))
        if selection.model and selection.model not in stages[name].models:
            raise UsageError(
                f"{where}: the stage {name} has no model {selection.model!r}",
                suggest_names(selection.model, stages[name].models),
            )


@dataclass
class MeasuredScores:
    """The scores of finished cells, read from their records when they are needed."""

    statuses: list[StudyCellStatus]
    out: Path
    records: dict[str, Record] = field(default_factory=dict)

    def find_score(self, selection: CellSelection, task: str, metric: str) -> float | None:
        """The score of one task, the mean over seeds; None if a cell is not done."""
        tasks_by_stage = {(status.cell.stage, status.cell.task) for status in self.statuses}
        parts = selection.list_parts()
        selection = next((part for part in parts if (part.stage, task) in tasks_by_stage), selection)
        score = self._find_stage_score(selection.stage, selection, task, metric)
        if score is None or selection.minus is None:
            return score
        before = self._find_stage_score(selection.minus, CellSelection(selection.minus, selection.model), task, metric)
        return None if before is None else score - before

    def _find_stage_score(self, stage: str, selection: CellSelection, task: str, metric: str) -> float | None:
        found = [
            status
            for status in self.statuses
            if (status.cell.stage, status.cell.task) == (stage, task)
            and selection.model in (None, status.cell.model)
            and selection.method in (None, status.cell.method)
        ]
        systems = {(status.cell.model, status.cell.method) for status in found}
        if len(systems) > 1:
            names = " and ".join(" · ".join(system) for system in sorted(systems))
            raise DataError(
                f"a row of [reproduces] selects several cells of the stage {stage}: {names}",
                "name the model, and the method if there are several",
            )
        scores = [self._read_score(status, metric) for status in found]
        known = [score for score in scores if score is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(scores) else None

    def _read_score(self, status: StudyCellStatus, metric: str) -> float | None:
        if status.status != "done" or status.record is None:
            return None
        if status.record not in self.records:
            self.records[status.record] = read_record(self.out / status.record / RECORD_FILE)
        record = self.records[status.record]
        return None if record.settings["sample"] else record.scores.get(metric)


def _build_row(row: PublishedRow, selection: CellSelection | None, measured: MeasuredScores) -> ReproducedRow:
    table, suite = row.table, row.table.suite
    figures = []
    for column, published in row.scores.items():
        members = _list_members(column)
        score = _measure_mean("", members, table.get_metric(column), selection, measured)
        figures.append(ReproducedFigure(column, published, score, table.get_tolerance(column)))
    if row.suite_mean is not None and suite:
        tasks = [task for members in group_tasks(suite).values() for task in members]
        score = _measure_mean(suite, tasks, table.metric, selection, measured)
        figures.append(ReproducedFigure(AVERAGE, row.suite_mean, score, table.get_tolerance(None)))
    return ReproducedRow(row.model, _describe_selection(selection) if selection else None, tuple(figures))


def _list_members(column: str) -> list[str]:
    """The tasks of a column: a group's members, or the task itself."""
    groups = {name: tasks for suite in catalog.load_suites() for name, tasks in (suite.groups or {}).items()}
    return list(groups.get(column, (column,)))


def _measure_mean(
    suite: str, tasks: list[str], metric: str, selection: CellSelection | None, measured: MeasuredScores
) -> float | None:
    if selection is None:
        return None
    scores = {task: measured.find_score(selection, task, metric) for task in tasks}
    known = {task: score for task, score in scores.items() if score is not None}
    return compute_suite_mean(suite, known) if len(known) == len(tasks) else None


def _describe_selection(selection: CellSelection) -> str:
    names = " · ".join(filter(None, (selection.stage, selection.model, selection.method)))
    cells = f"{names} minus {selection.minus}" if selection.minus else names
    others = [f"{part.stage} minus {part.minus}" if part.minus else part.stage for part in selection.list_parts()[1:]]
    return ", ".join([cells, *others])
