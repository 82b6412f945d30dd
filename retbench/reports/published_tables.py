"""Published numbers beside ours: tables in `references/*.toml`, figures only, each with its source and its caveat.

A published row stands beside our rows of the same tasks, metric and protocol. Nobody checked that its texts, its
prompt and its search were ours, so it is marked, never ranked and never tested.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retbench.cards import toml_parser
from retbench.errors import UsageError, suggest_names
from retbench.reports.suite_average import entries, tree_mean

FOLDER = Path(__file__).parent / "references"


@dataclass(frozen=True)
class Table:
    """One table as a file holds it: a row is a list of scores in the order of `tasks`, nan where none was given.

    A column may be a task or a group of a suite; `averages` are means of the whole `suite` that came without columns.
    """

    name: str
    title: str
    source: str
    tasks: tuple[str, ...]
    rows: dict[str, tuple[float, ...]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)
    suite: str | None = None
    metric: str = "ndcg_at_10"
    metrics: dict[str, str] = field(default_factory=dict)  # where a task has another one
    caveat: str | None = None
    protocol: str = "standard"
    scale: float = 100.0  # the figures are printed times this


@dataclass(frozen=True)
class Published:
    """One row of a table; scores 0 to 1, by task or group."""

    model: str
    table: Table
    scores: dict[str, float]
    mean: float | None = None  # of the whole suite, where only that was published

    def beside(self, suite: str, metrics: Mapping[str, str], protocol: str) -> "Published | None":
        """What of it may stand beside our scores of these tasks; none if nothing may."""
        if self.table.protocol != protocol:
            return None
        groups = {name: metrics[members[0]] for name, members in entries(suite, metrics).items()}
        known = {**metrics, **groups}
        own = {name: self.table.metrics.get(name, self.table.metric) for name in self.scores}
        scores = {name: score for name, score in self.scores.items() if known.get(name) == own[name]}
        mean = self.mean if self.table.suite == suite and set(groups) == set(entries(suite)) else None
        return Published(self.model, self.table, scores, mean) if scores or mean is not None else None

    def score(self, name: str, members: tuple[str, ...]) -> float | None:
        """The score of a column: as published, or the mean of its members."""
        if name in self.scores or not all(member in self.scores for member in members):
            return self.scores.get(name)
        return math.fsum(self.scores[member] for member in members) / len(members)

    def average(self, suite: str, tasks: list[str]) -> float | None:
        """The mean over the suite's entries; none while one is missing."""
        known = {name: self.score(name, members) for name, members in entries(suite, tasks).items()}
        full = {name: score for name, score in known.items() if score is not None}
        return tree_mean("", full) if len(full) == len(known) else self.mean


def published(*folders: Path, only: tuple[str, ...] = ()) -> list[Published]:
    """Every published row, shipped or in the folders given; `only` names tables."""
    tables = {table.name: table for table in shipped()}
    tables |= {table.name: table for folder in folders for table in map(read, sorted(folder.glob("*.toml")))}
    for name in only:
        if name not in tables:
            raise UsageError(f"there is no published table called {name!r}", suggest_names(name, tables))
    return [row for name in (only or tables) for row in _rows(tables[name])]


@functools.cache
def shipped() -> tuple[Table, ...]:
    """The tables that come with retbench."""
    return tuple(read(file) for file in sorted(FOLDER.glob("*.toml")))


def read(file: Path) -> Table:
    """One table; a row of the wrong length is an error that names it."""
    table = toml_parser.load_card(Table, file)
    for model, scores in table.rows.items():
        if len(scores) != len(table.tasks):
            place = toml_parser.CardLocation(file, file.read_text(encoding="utf-8"), ("rows", model))
            raise place.make_error(
                f"{len(scores)} scores for {len(table.tasks)} tasks", "write nan for a score not known"
            )
    return table


def _rows(table: Table) -> list[Published]:
    found = []
    for model, figures in table.rows.items():
        pairs = zip(table.tasks, figures, strict=True)
        scores = {task: figure / table.scale for task, figure in pairs if not math.isnan(figure)}
        found.append(Published(model, table, scores))
    return found + [Published(model, table, {}, mean / table.scale) for model, mean in table.averages.items()]
