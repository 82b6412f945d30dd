"""Builds the report of a results folder: leaderboards as text, JSON or an HTML page."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.task import Suite
from retbench.errors import DataError, MissingError
from retbench.records.cell import Cell, build_cell
from retbench.records.results_folder import ResultsFolder, ResultsScan
from retbench.reports.formats import FORMATTERS
from retbench.reports.html_page import build_page
from retbench.reports.kind_tables import compute_kind_scores
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow, build_leaderboards
from retbench.reports.prompt_effects import collect_prompt_facts
from retbench.reports.published_tables import load_published_rows
from retbench.reports.sample_agreement import find_sample_agreement
from retbench.reports.table_cells import COST_COLUMNS

IMPORTED_TABLES_FOLDER = "references"  # the folder in a results folder where `retbench import` writes tables


@dataclass(frozen=True)
class Report:
    """The scanned runs of a results folder and their leaderboards."""

    scan: ResultsScan
    boards: list[Leaderboard]

    @property
    def problems(self) -> list[DataError]:
        """Errors of records that could not be read; these records are left out."""
        return self.scan.problems

    def format(self, format_name: str, with_ids: bool = False) -> str:
        """The leaderboards in one of FORMATTERS, or as an HTML page, which has the settings-ids already."""
        return build_page(self.boards) if format_name == "html" else FORMATTERS[format_name](self.boards, with_ids)

    def list_cells(self) -> list[dict[str, Any]]:
        """All cells, then all suite averages (their `task` is null), then published rows."""
        cells = [build_cell(run.record, str(run.folder), cached=True).to_json() for run in self.scan.runs]
        for cell, run in zip(cells, self.scan.runs, strict=True):
            cell.update({"main_score": run.score})  # by the metric of the report
            cell.update({"kinds": kinds} if (kinds := compute_kind_scores(run)) else {})
        by_record = {(cell["record"], cell["suite"]): cell for cell in cells}
        averages: list[dict[str, Any]] = []
        for board in self.boards:
            prompt_effects = collect_prompt_facts(board)
            for number, row in enumerate(board.rows):
                for task, run in row.runs.items():
                    by_record[str(run.folder), board.suite] |= _build_rank_facts(board, row, task)
                effect = {"prompt_effect": prompt_effects[number]} if number in prompt_effects else {}
                averages.append(_build_average_row(board, row) | effect)
        return [*cells, *map(_build_failed_cell, self.scan.failures), *averages, *_build_published_cells(self.boards)]


def build_report(
    results: Path,
    reference: bool = False,
    table_names: tuple[str, ...] = (),
    suites: tuple[str, ...] = (),
    metric: str | None = None,
) -> Report:
    """Build the leaderboards of a results folder, or of `suites`, whose tasks may be at home in other suites.

    `table_names` selects published tables to show beside them. `metric` replaces the main metric of every task.
    """
    scan = ResultsFolder(results).scan_runs(metric)
    if not scan.runs:
        raise _explain_no_runs(results, scan)
    if suites:
        found = [catalog.load_suites().find(name) for name in suites]
        scan = _select_suites(scan, results, list({suite.name: suite for suite in found}.values()))
    published_rows = (
        load_published_rows(results / IMPORTED_TABLES_FOLDER, only=table_names) if reference or table_names else []
    )
    boards = build_leaderboards(scan.runs, scan.failures, published_rows)
    return Report(scan, [replace(board, sample_agreement=find_sample_agreement(board, boards)) for board in boards])


def _select_suites(scan: ResultsScan, results: Path, suites: list[Suite]) -> ResultsScan:
    """Select the runs of the suites' tasks; a run is counted in each suite that has its task."""
    runs, failures = [], []
    for suite in suites:
        tasks = suite.expand_tasks()
        selected = [run for run in scan.runs if run.record.task in tasks]
        if not selected:
            raise MissingError(
                f"{results} has no run of a task of {suite.name}", f"retbench run --suite {suite.name} --model MODEL"
            )
        runs += [replace(run, record=replace(run.record, suite=suite.name)) for run in selected]
        failures += [replace(failure, suite=suite.name) for failure in scan.failures if failure.task in tasks]
    return replace(scan, runs=runs, failures=failures)


def list_finished_cells(results: Path) -> tuple[list[Cell], list[DataError]]:
    """All finished cells without leaderboards and tests, and the errors of records that could not be read."""
    scan = ResultsFolder(results).scan_runs()
    if not scan.runs:
        raise _explain_no_runs(results, scan)
    return [build_cell(run.record, str(run.folder), cached=True) for run in scan.runs], scan.problems


def _explain_no_runs(results: Path, scan: ResultsScan) -> MissingError:
    for problem in scan.problems:
        raise problem
    if scan.failures:
        failure = scan.failures[0]
        return MissingError(
            f"{results} contains only failed cells. The first error: {failure.error}", failure.next_step
        )
    return MissingError(
        f"{results} contains no finished run", "run an evaluation first: retbench run --model bm25 --suite stdlib"
    )


def _build_rank_facts(board: Leaderboard, row: LeaderboardRow, task: str | None) -> dict[str, Any]:
    row_rank = board.get_rank(row, task)
    if row_rank is None:
        return {}
    facts = {
        "rank": row_rank.rank,
        "letters": row_rank.letters,
        "interval": list(row_rank.interval),
        "rivals": row_rank.ranked_rows,
    }
    return facts if row_rank.rank_over_tasks is None else {**facts, "rank_over_tasks": row_rank.rank_over_tasks}


def _build_average_row(board: Leaderboard, row: LeaderboardRow) -> dict[str, Any]:
    facts = {
        "model": row.model,
        "method": row.label,
        "suite": board.suite,
        "task": None,
        "status": "done",
        **board.shared_settings,
    }
    score = board.compute_average(row)
    if score is None:
        facts["status"] = "incomplete"
    costs = {name: value for name, (_, measure, _) in COST_COLUMNS.items() if (value := measure(row)) is not None}
    rank_facts = _build_rank_facts(board, row, board.ranked_by)
    if mean_rank := board.get_mean_rank(row):
        rank_facts |= {"mean_rank": mean_rank.value, "mean_rank_interval": list(mean_rank.interval)}
    agreement = {"sample_agreement": asdict(board.sample_agreement)} if board.sample_agreement else {}
    return {**facts, "main_score": score, "tasks": board.tasks, **rank_facts, **agreement, **costs}


def _build_failed_cell(failure: Any) -> dict[str, Any]:
    names = ("model", "method", "task", "suite", "split", "sample", "rerank", "status", "error", "next_step")
    return {name: getattr(failure, name) for name in names}


def _build_published_cells(boards: list[Leaderboard]) -> list[dict[str, Any]]:
    rows = {(row.table.name, row.model): (board, row) for board in boards for row in board.published_rows}
    return [
        {"model": row.model, "method": "published", "suite": board.suite, "task": task, "status": "published",
         "main_score": row.scores[task], "source": row.table.source, "caveat": row.table.caveat}
        for board, row in rows.values()
        for task in board.tasks
        if task in row.scores
    ]  # fmt: skip
