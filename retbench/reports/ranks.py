"""Ranks: the rank, the letters and the confidence interval of every row, per task and for the suite's average.

A suite's average is a weighted mean over all its queries: the weight of a query is its task's weight divided by the
task's number of queries. So the same tests work for a task and for the average. They take queries as units: would
other queries change the result? A second test takes tasks as units, with one score per task; it needs at least six
tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retbench.records.scored_run import ScoredRun
from retbench.reports.suite_average import compute_suite_mean, compute_task_weights
from retbench.scoring.significance import ConfidenceInterval, ModelRank, compute_bootstrap_intervals, rank_models

ALPHA = 0.05
MIN_TASKS_FOR_TASK_TEST = 6  # with five tasks, even five wins have a p-value of 1/16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RowRank:
    """The rank of a row among the rows that have the same runs."""

    rank: int
    letters: str
    interval: ConfidenceInterval
    ranked_rows: int  # number of rows in this ranking
    rank_over_tasks: int | None = None  # the rank with tasks instead of queries as units


def compute_row_ranks(
    rows: Sequence[Mapping[str, ScoredRun]], tasks: list[str], suite: str
) -> list[dict[str | None, RowRank]]:
    """The ranks of every row; a row is ranked on average only if it has a run for every task."""
    row_ranks: list[dict[str | None, RowRank]] = [{} for _ in rows]
    for task in tasks:
        columns = {number: runs[task].values for number, runs in enumerate(rows) if task in runs}
        intervals = _compute_intervals(columns)
        for number, model_rank in _rank_columns(columns).items():
            row_ranks[number][task] = RowRank(model_rank.rank, model_rank.letters, intervals[number], len(columns))
    complete_rows = {number: runs for number, runs in enumerate(rows) if all(task in runs for task in tasks)}
    if len(tasks) > 1:
        for number, row_rank in _rank_averages(complete_rows, tasks, suite).items():
            row_ranks[number][None] = row_rank
    return row_ranks


def _rank_averages(
    complete_rows: Mapping[int, Mapping[str, ScoredRun]], tasks: list[str], suite: str
) -> dict[int, RowRank]:
    query_ranks = _rank_columns(
        {number: weight_query_scores(runs, tasks, suite) for number, runs in complete_rows.items()}
    )
    task_ranks: dict[int, ModelRank] = {}
    if len(tasks) >= MIN_TASKS_FOR_TASK_TEST:
        weights = compute_task_weights(suite, tasks)
        task_ranks = _rank_columns(
            {n: np.array([runs[t].score * weights[t] for t in tasks]) for n, runs in complete_rows.items()}
        )
    intervals = _compute_average_intervals(complete_rows, tasks, suite)
    row_ranks = {}
    for number, model_rank in query_ranks.items():
        rank_over_tasks = task_ranks[number].rank if task_ranks else None
        row_ranks[number] = RowRank(
            model_rank.rank, model_rank.letters, intervals[number], len(complete_rows), rank_over_tasks
        )
    return row_ranks


def _rank_columns(columns: Mapping[int, Floats]) -> dict[int, ModelRank]:
    """Rank columns by row number, because two rows may have the same model and method."""
    if not columns:
        return {}
    return {
        int(name): model_rank
        for name, model_rank in rank_models({str(n): c for n, c in columns.items()}, ALPHA).items()
    }


def weight_query_scores(runs: Mapping[str, ScoredRun], tasks: list[str], suite: str) -> Floats:
    """One weighted score per query of all tasks; their mean is the suite's average."""
    weights = _compute_query_weights(runs, tasks, suite)
    return np.concatenate([runs[task].values * weights[task] for task in tasks])


def _compute_query_weights(runs: Mapping[str, ScoredRun], tasks: list[str], suite: str) -> dict[str, float]:
    weights, total = compute_task_weights(suite, tasks), sum(len(runs[task].values) for task in tasks)
    return {task: weights[task] * total / len(runs[task].values) for task in tasks}


def _compute_average_intervals(
    complete_rows: Mapping[int, Mapping[str, ScoredRun]], tasks: list[str], suite: str
) -> dict[int, ConfidenceInterval]:
    """The intervals of the averages; each task is centred first, because only queries are resampled, not tasks."""
    centred, means = {}, {}
    for number, runs in complete_rows.items():
        weights = _compute_query_weights(runs, tasks, suite)
        centred[number] = np.concatenate([(runs[task].values - runs[task].score) * weights[task] for task in tasks])
        means[number] = compute_suite_mean(suite, {task: runs[task].score for task in tasks})
    return {
        number: ConfidenceInterval(means[number] + low, means[number] + high)
        for number, (low, high) in _compute_intervals(centred).items()
    }


def _compute_intervals(columns: Mapping[int, Floats]) -> dict[int, ConfidenceInterval]:
    if not columns:
        return {}
    intervals = compute_bootstrap_intervals({str(number): column for number, column in columns.items()})
    return dict(zip(columns, intervals, strict=True))
