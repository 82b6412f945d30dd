"""Metrics: the quality of a ranking, given the judged documents.

A metric takes a ranking (document ids, best first) and no scores, so ties, rounding and float precision are decided
once, by the search. The definitions are trec_eval's: linear gain, a discount of log2(rank + 1), relevant means a grade
above 0, and an unjudged document counts as not relevant. A task may set a higher minimum grade for the binary metrics;
nDCG uses every grade above 0.

Only retrieved relevant documents change a metric, so each metric is computed from their ranks: a curve with one value
per retrieved relevant document, read at every cut.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retbench.cards.task import METRIC_CUTS
from retbench.errors import DataError

Scores = dict[str, float]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _RelevantRanks:
    """Ranks (from 1, rising) and grades of retrieved relevant documents; `ideal` has all relevant grades, falling."""

    ranks: Integers
    grades: Floats
    ideal: Floats

    def count_until(self, cuts: Integers) -> Integers:
        """Return the number of relevant documents at or above each cut."""
        return np.searchsorted(self.ranks, cuts, side="right")


def _compute_ndcg(relevant: _RelevantRanks, cuts: Integers) -> Floats:
    best = _running_sum(relevant.ideal / np.log2(np.arange(2, len(relevant.ideal) + 2)))
    gained = _running_sum(relevant.grades / np.log2(relevant.ranks + 1))
    return gained[relevant.count_until(cuts)] / best[np.minimum(cuts, len(relevant.ideal))]


def _compute_average_precision(relevant: _RelevantRanks, cuts: Integers) -> Floats:
    precisions = np.arange(1, len(relevant.ranks) + 1) / relevant.ranks
    return _running_sum(precisions)[relevant.count_until(cuts)] / len(relevant.ideal)


def _compute_recall(relevant: _RelevantRanks, cuts: Integers) -> Floats:
    return relevant.count_until(cuts) / len(relevant.ideal)


def _compute_reciprocal_rank(relevant: _RelevantRanks, cuts: Integers) -> Floats:
    return np.where(relevant.ranks[0] <= cuts, 1 / relevant.ranks[0], 0.0)


def _running_sum(values: Floats) -> Floats:
    """Return the sum of the first n values at index n."""
    return np.concatenate(([0.0], np.cumsum(values)))


_GRADED = "ndcg"
_METRICS: dict[str, Callable[[_RelevantRanks, Integers], Floats]] = {
    _GRADED: _compute_ndcg,
    "map": _compute_average_precision,
    "recall": _compute_recall,
    "mrr": _compute_reciprocal_rank,
}


@functools.cache
def _list_cuts(metric: str, depth: int) -> Integers:
    return np.array([cut for cut in METRIC_CUTS[metric] if cut <= depth], dtype=np.int64)


@functools.cache
def _list_metric_names(depth: int) -> tuple[str, ...]:
    return tuple(f"{metric}_at_{cut}" for metric in _METRICS for cut in _list_cuts(metric, depth))


def score_query(ranking: Sequence[str], judged: Mapping[str, int], depth: int, relevant_from: int = 1) -> Scores:
    """Return every metric of one ranking, at every cut up to its depth."""
    graded = _find_relevant(ranking, judged, 1)
    binary = graded if relevant_from == 1 else _find_relevant(ranking, judged, relevant_from)
    curves = [_compute_curve(metric, graded if metric == _GRADED else binary, depth) for metric in _METRICS]
    return dict(zip(_list_metric_names(depth), np.concatenate(curves).tolist(), strict=True))


def _compute_curve(metric: str, relevant: _RelevantRanks, depth: int) -> Floats:
    cuts = _list_cuts(metric, depth)
    return _METRICS[metric](relevant, cuts) if len(relevant.ranks) else np.zeros(len(cuts))


def _find_relevant(ranking: Sequence[str], judged: Mapping[str, int], min_grade: int) -> _RelevantRanks:
    rank_by_id = dict(zip(ranking, itertools.count(1), strict=False))
    if len(rank_by_id) != len(ranking):
        repeated = Counter(ranking).most_common(1)[0][0]
        raise DataError(f"document {repeated!r} is ranked more than once", "keep each document once, at its best rank")
    relevant = {document: grade for document, grade in judged.items() if grade >= min_grade}
    hits = sorted((rank_by_id[document], grade) for document, grade in relevant.items() if document in rank_by_id)
    return _RelevantRanks(
        ranks=np.array([rank for rank, _ in hits], dtype=np.int64),
        grades=np.array([grade for _, grade in hits], dtype=np.float64),
        ideal=np.array(sorted(relevant.values(), reverse=True), dtype=np.float64),
    )


def score_run(
    rankings: Mapping[str, Sequence[str]],
    judgments: Mapping[str, Mapping[str, int]],
    depth: int,
    relevant_from: int = 1,
) -> dict[str, Scores]:
    """Return the metrics of every judged query, in the judgments' order; a query without a ranking scores 0."""
    scores = {}
    for query, judged in judgments.items():
        try:
            scores[query] = score_query(rankings.get(query, ()), judged, depth, relevant_from)
        except DataError as problem:
            raise DataError(f"query {query!r}: {problem.cause}", problem.next_step) from problem
    return scores


def compute_mean_scores(per_query: Mapping[str, Mapping[str, float]]) -> Scores:
    """Return the mean of each metric; the sum is exact, so the order of the queries has no effect."""
    if not per_query:
        raise DataError("there is no judged query to average over", "check the split and the judgments of this task")
    rows = list(per_query.values())
    for query, row in per_query.items():
        if row.keys() != rows[0].keys():
            raise DataError(f"query {query!r} has other metrics than the first query", "score all queries at one depth")
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
