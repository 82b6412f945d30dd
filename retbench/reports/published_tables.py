"""Published scores: tables in `references/*.toml`, each with its source and its caveat.

A published row is shown beside measured rows with the same tasks, metric and protocol. Its texts, prompt and search
may differ from ours, so it is marked and never ranked or tested.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from retbench.errors import DataError, UsageError, suggest_names
from retbench.reports.suite_average import compute_suite_mean, group_tasks
from retbench.system import toml_parser

TABLES_FOLDER = Path(__file__).parent / "references"


@dataclass(frozen=True)
class PublishedTable:
    """One table file: a row is a list of scores in the order of `tasks`, nan for a missing score.

    A column is a task or a group of a suite; `averages` are means of the whole `suite`, published without columns.
    With `measures = "gain"` the figures are differences of two scores, and no leaderboard shows them. `tolerance` is
    how far a reproduction may be from a figure, in the table's own unit, with its reason; `tolerances` are those of
    columns that have their own.
    """

    nan_fields: ClassVar = ("rows",)

    name: str
    title: str
    source: str
    tasks: tuple[str, ...]
    rows: dict[str, tuple[float, ...]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)
    suite: str | None = None
    metric: str = "ndcg_at_10"
    metrics: dict[str, str] = field(default_factory=dict)  # for tasks with a different metric
    caveat: str | None = None
    protocol: str = "standard"
    scale: float = 100.0  # the file's scores are multiplied by this
    measures: Literal["score", "gain"] = "score"
    tolerance: float | None = None
    tolerances: dict[str, float] = field(default_factory=dict)
    tolerance_reason: str | None = None

    def __post_init__(self) -> None:
        if (self.tolerance is None) != (self.tolerance_reason is None):
            raise DataError("tolerance and tolerance_reason need each other", "write both, or neither")

    def get_tolerance(self, column: str | None) -> float | None:
        """The tolerance of a column, or of the average (None), as a score from 0 to 1; None if the table has none."""
        points = self.tolerances.get(column or "", self.tolerance)
        return None if points is None else points / self.scale

    def get_metric(self, column: str) -> str:
        """The metric of a column."""
        return self.metrics.get(column, self.metric)


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table; scores 0 to 1, by task or group."""

    model: str
    table: PublishedTable
    scores: dict[str, float]
    suite_mean: float | None = None  # of the whole suite, if only the mean was published

    def select_comparable(self, suite: str, metrics: Mapping[str, str], protocols: set[str]) -> "PublishedRow | None":
        """The scores that are comparable with measured scores of these tasks; None if there are none."""
        if protocols != {self.table.protocol} or self.table.measures == "gain":
            return None
        group_metrics = {name: metrics[members[0]] for name, members in group_tasks(suite, metrics).items()}
        measured_metrics = {**metrics, **group_metrics}
        published_metrics = {name: self.table.get_metric(name) for name in self.scores}
        scores = {
            name: score for name, score in self.scores.items() if measured_metrics.get(name) == published_metrics[name]
        }
        mean = self.suite_mean if self.table.suite == suite and set(group_metrics) == set(group_tasks(suite)) else None
        return PublishedRow(self.model, self.table, scores, mean) if scores or mean is not None else None

    def compute_score(self, name: str, members: tuple[str, ...]) -> float | None:
        """The score of a column: as published, or the mean of its member tasks."""
        if name in self.scores or not all(member in self.scores for member in members):
            return self.scores.get(name)
        return math.fsum(self.scores[member] for member in members) / len(members)

    def compute_average(self, suite: str, tasks: list[str]) -> float | None:
        """The mean over the suite's entries; the published mean, or None, if one is missing."""
        scores = {name: self.compute_score(name, members) for name, members in group_tasks(suite, tasks).items()}
        known_scores = {name: score for name, score in scores.items() if score is not None}
        return compute_suite_mean("", known_scores) if len(known_scores) == len(scores) else self.suite_mean


def load_published_rows(*folders: Path, only: tuple[str, ...] = ()) -> list[PublishedRow]:
    """All published rows, shipped or from the given folders; `only` selects tables by name."""
    tables = {table.name: table for table in load_shipped_tables()}
    tables |= {table.name: table for folder in folders for table in map(read_table, sorted(folder.glob("*.toml")))}
    for name in only:
        if name not in tables:
            raise UsageError(f"there is no published table called {name!r}", suggest_names(name, tables))
    return [row for name in (only or tables) for row in _build_rows(tables[name])]


@functools.cache
def load_shipped_tables() -> tuple[PublishedTable, ...]:
    """The tables that come with retbench."""
    return tuple(read_table(file) for file in sorted(TABLES_FOLDER.glob("*.toml")))


def read_table(file: Path) -> PublishedTable:
    """Read one table; a row of the wrong length raises an error that names the row."""
    table = toml_parser.load_card(PublishedTable, file)
    for model, scores in table.rows.items():
        if len(scores) != len(table.tasks):
            location = toml_parser.CardLocation(file, file.read_text(encoding="utf-8"), ("rows", model))
            raise location.make_error(
                f"{len(scores)} scores for {len(table.tasks)} tasks", "write nan for a missing score"
            )
    return table


def _build_rows(table: PublishedTable) -> list[PublishedRow]:
    rows = []
    for model, figures in table.rows.items():
        pairs = zip(table.tasks, figures, strict=True)
        scores = {task: figure / table.scale for task, figure in pairs if not math.isnan(figure)}
        rows.append(PublishedRow(model, table, scores))
    return rows + [PublishedRow(model, table, {}, mean / table.scale) for model, mean in table.averages.items()]
