"""Standing: the rank, the letters and the interval of every row, per task and for the suite's average.

A suite's average is one weighted mean over all its queries: a query counts as its task does, divided by the task's
number of queries. So the tests made for one task serve the average too. They ask whether other queries would have told
another story; whether other tasks would is asked separately, with one number per task, and with few tasks that
question cannot be answered at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retbench.records.scored_run import Kept
from retbench.reports.suite_average import tree_mean, tree_weights
from retbench.scoring.significance import Interval, Standing, bootstrap_interval, ranks

ALPHA = 0.05
TASKS_NEEDED = 6  # with five tasks even five wins have a p-value of 1/16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a row stands among the rows that have the same runs."""

    rank: int
    letters: str
    interval: Interval
    rivals: int  # rows ranked together
    over_tasks: int | None = None  # the rank with tasks instead of queries as units


def places(rows: Sequence[Mapping[str, Kept]], tasks: list[str], suite: str) -> list[dict[str | None, Place]]:
    """The places of every row; a row is ranked on average only if it is full."""
    found: list[dict[str | None, Place]] = [{} for _ in rows]
    for task in tasks:
        columns = {number: runs[task].values for number, runs in enumerate(rows) if task in runs}
        for number, standing in _ranks(columns).items():
            interval = bootstrap_interval(columns[number])
            found[number][task] = Place(standing.rank, standing.letters, interval, len(columns))
    full = {number: runs for number, runs in enumerate(rows) if all(task in runs for task in tasks)}
    if len(tasks) > 1:
        for number, place in _average_places(full, tasks, suite).items():
            found[number][None] = place
    return found


def _average_places(full: Mapping[int, Mapping[str, Kept]], tasks: list[str], suite: str) -> dict[int, Place]:
    by_query = _ranks({number: weighted(runs, tasks, suite) for number, runs in full.items()})
    by_task: dict[int, Standing] = {}
    if len(tasks) >= TASKS_NEEDED:
        weights = tree_weights(suite, tasks)
        by_task = _ranks({n: np.array([runs[t].score * weights[t] for t in tasks]) for n, runs in full.items()})
    found = {}
    for number, runs in full.items():
        standing, interval = by_query[number], average_interval(runs, tasks, suite)
        over_tasks = by_task[number].rank if by_task else None
        found[number] = Place(standing.rank, standing.letters, interval, len(full), over_tasks)
    return found


def _ranks(columns: Mapping[int, Floats]) -> dict[int, Standing]:
    """Rows are named by their number, because two may have the same model and method."""
    if not columns:
        return {}
    return {int(name): found for name, found in ranks({str(n): c for n, c in columns.items()}, ALPHA).items()}


def weighted(runs: Mapping[str, Kept], tasks: list[str], suite: str) -> Floats:
    """One value per query of all tasks; their mean is the suite's average."""
    weights, total = tree_weights(suite, tasks), sum(len(runs[task].values) for task in tasks)
    return np.concatenate([runs[t].values * (weights[t] * total / len(runs[t].values)) for t in tasks])


def average_interval(runs: Mapping[str, Kept], tasks: list[str], suite: str) -> Interval:
    """The interval of the average; each task is centred first, because tasks are given and only queries are drawn."""
    weights, total = tree_weights(suite, tasks), sum(len(runs[task].values) for task in tasks)
    centred = [(runs[t].values - runs[t].score) * (weights[t] * total / len(runs[t].values)) for t in tasks]
    low, high = bootstrap_interval(np.concatenate(centred))
    mean = tree_mean(suite, {task: runs[task].score for task in tasks})
    return Interval(mean + low, mean + high)
