"""The report story: runs from disk become boards, and a board becomes text or a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.errors import DataError, MissingError
from retbench.records.cell import of_record
from retbench.records.results_folder import Ledger, Scan
from retbench.reports.formats import FORMATS
from retbench.reports.html_page import page
from retbench.reports.leaderboard import Block, Row, blocks
from retbench.reports.published_tables import published
from retbench.reports.table_cells import COSTS

IMPORTED = "references"  # the folder below a results folder where `retbench import` puts tables


@dataclass(frozen=True)
class Report:
    """Everything a results folder has to say."""

    scan: Scan
    blocks: list[Block]

    @property
    def problems(self) -> list[DataError]:
        """What could not be read and was left out."""
        return self.scan.problems

    def text(self, form: str) -> str:
        """The board in one of the FORMATS, or as a page."""
        return page(self.blocks) if form == "html" else FORMATS[form](self.blocks)

    def cells(self) -> list[dict[str, Any]]:
        """Every cell, then every suite average (`task` is null there), then published rows."""
        cells = [of_record(run.record, str(run.folder), cached=True).json() for run in self.scan.runs]
        by_record = {cell["record"]: cell for cell in cells}
        averages: list[dict[str, Any]] = []
        for block in self.blocks:
            for row in block.rows:
                for task, run in row.runs.items():
                    by_record[str(run.folder)] |= _standing(block, row, task)
                averages.append(_average(block, row))
        return [*cells, *map(_failed, self.scan.failures), *averages, *_published(self.blocks)]


def report(results: Path, reference: bool = False, only: tuple[str, ...] = ()) -> Report:
    """The boards of a results folder; `only` names the published tables to put beside them."""
    scan = Ledger(results).scan()
    if not scan.runs:
        raise _nothing(results, scan)
    rows = published(results / IMPORTED, only=only) if reference or only else []
    return Report(scan, blocks(scan.runs, scan.failures, rows))


def finished(results: Path) -> tuple[list[dict[str, Any]], list[DataError]]:
    """Every finished cell, without boards and tests; and what could not be read and is missing."""
    scan = Ledger(results).scan()
    if not scan.runs:
        raise _nothing(results, scan)
    return [of_record(run.record, str(run.folder), cached=True).json() for run in scan.runs], scan.problems


def _nothing(results: Path, scan: Scan) -> MissingError:
    for problem in scan.problems:
        raise problem
    if scan.failures:
        lost = scan.failures[0]
        return MissingError(f"{results} holds only failed cells, the first: {lost.error}", lost.next_step)
    return MissingError(f"{results} holds no finished run", "make one: retbench run --model bm25 --suite stdlib")


def _standing(block: Block, row: Row, task: str | None) -> dict[str, Any]:
    place = block.place(row, task)
    if place is None:
        return {}
    facts = {"rank": place.rank, "letters": place.letters, "interval": list(place.interval), "rivals": place.rivals}
    return facts if place.over_tasks is None else {**facts, "rank_over_tasks": place.over_tasks}


def _average(block: Block, row: Row) -> dict[str, Any]:
    facts = {
        "model": row.model,
        "method": row.label,
        "suite": block.suite,
        "task": None,
        "status": "done",
        **block.terms,
    }
    score = block.average(row)
    if score is None:
        facts["status"] = "incomplete"
    costs = {name: value for name, (_, measure, _) in COSTS.items() if (value := measure(row)) is not None}
    standing = _standing(block, row, block.goal)
    return {**facts, "main_score": score, "tasks": block.tasks, **standing, **costs}


def _failed(failure: Any) -> dict[str, Any]:
    names = ("model", "method", "task", "suite", "split", "sample", "rerank", "status", "error", "next_step")
    return {name: getattr(failure, name) for name in names}


def _published(made: list[Block]) -> list[dict[str, Any]]:
    rows = {(one.table.name, one.model): (block, one) for block in made for one in block.references}
    return [
        {"model": one.model, "method": "published", "suite": block.suite, "task": task, "status": "published",
         "main_score": one.scores[task], "source": one.table.source, "caveat": one.table.caveat}
        for block, one in rows.values()
        for task in block.tasks
        if task in one.scores
    ]  # fmt: skip
