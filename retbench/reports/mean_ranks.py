"""Mean ranks: the rank of a row on each entry of a suite, averaged over the entries, with a bootstrap interval.

An average of scores is moved most by the tasks whose scores differ most. The mean rank gives every entry the same
weight: only the order of the rows counts. The interval resamples the queries of each task, the same ones for all rows,
and ranks again; the tasks are held fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retbench.records.scored_run import ScoredRun
from retbench.reports.suite_average import group_tasks
from retbench.scoring.significance import ConfidenceInterval, draw_bootstrap_means

ROUNDS = 2_000
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanRank:
    """The mean rank of a row among the complete rows; 1 is the best on every entry."""

    value: float
    interval: ConfidenceInterval


def compute_mean_ranks(
    rows: Sequence[Mapping[str, ScoredRun]], tasks: Sequence[str], suite: str
) -> dict[int, MeanRank]:
    """The mean ranks of the rows that have a run for every task, by row number; none for one entry or one row."""
    complete = [number for number, runs in enumerate(rows) if all(task in runs for task in tasks)]
    entries = group_tasks(suite, tasks)
    if len(complete) < 2 or len(entries) < 2:
        return {}
    measured, drawn = np.zeros((1, len(complete))), np.zeros((ROUNDS, len(complete)))
    for members in entries.values():
        means = [np.array([[rows[number][task].score for number in complete]]) for task in members]
        draws = [_draw_means(rows, complete, task, seed=tasks.index(task)) for task in members]
        measured += rank_columns(np.mean(means, axis=0)) / len(entries)
        drawn += rank_columns(np.mean(draws, axis=0)) / len(entries)
    tail = (1 - LEVEL) / 2
    ends = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return {
        number: MeanRank(float(value), ConfidenceInterval(float(low), float(high)))
        for number, value, low, high in zip(complete, measured[0], *ends, strict=True)
    }


def _draw_means(rows: Sequence[Mapping[str, ScoredRun]], complete: list[int], task: str, seed: int) -> Floats:
    return draw_bootstrap_means({str(number): rows[number][task].values for number in complete}, ROUNDS, seed)


def rank_columns(scores: Floats) -> Floats:
    """The rank of each value in its line: 1 for the largest; equal values share the mean of their ranks."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered, places = np.take_along_axis(scores, order, axis=1), np.arange(scores.shape[1])
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(scores), 1), dtype=bool)
    firsts = np.maximum.accumulate(np.where(np.hstack([edge, changes]), places, 0), axis=1)
    lasts = np.where(np.hstack([changes, edge]), places, places[-1])
    lasts = np.minimum.accumulate(lasts[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty_like(scores)
    np.put_along_axis(ranks, order, 1 + (firsts + lasts) / 2, axis=1)
    return ranks
