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
from retbench.scoring.significance import ConfidenceInterval, ModelRank, compute_bootstrap_interval, rank_models

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
        for number, model_rank in _rank_columns(columns).items():
            interval = compute_bootstrap_interval(columns[number])
            row_ranks[number][task] = RowRank(model_rank.rank, model_rank.letters, interval, len(columns))
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
    row_ranks = {}
    for number, runs in complete_rows.items():
        model_rank, interval = query_ranks[number], compute_average_interval(runs, tasks, suite)
        rank_over_tasks = task_ranks[number].rank if task_ranks else None
        row_ranks[number] = RowRank(model_rank.rank, model_rank.letters, interval, len(complete_rows), rank_over_tasks)
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
    weights, total = compute_task_weights(suite, tasks), sum(len(runs[task].values) for task in tasks)
    return np.concatenate([runs[t].values * (weights[t] * total / len(runs[t].values)) for t in tasks])


def compute_average_interval(runs: Mapping[str, ScoredRun], tasks: list[str], suite: str) -> ConfidenceInterval:
    """The interval of the average; each task is centred first, because only queries are resampled, not tasks."""
    weights, total = compute_task_weights(suite, tasks), sum(len(runs[task].values) for task in tasks)
    centred = [(runs[t].values - runs[t].score) * (weights[t] * total / len(runs[t].values)) for t in tasks]
    low, high = compute_bootstrap_interval(np.concatenate(centred))
    mean = compute_suite_mean(suite, {task: runs[task].score for task in tasks})
    return ConfidenceInterval(mean + low, mean + high)
