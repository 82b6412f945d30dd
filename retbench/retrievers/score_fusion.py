"""Score fusion of two rankings: scores are scaled to 0..1 per query, then averaged.

The same as min-max normalization and weighted sum of ranx, which PromptReps' hybrid.py uses: a document gets 0 from a
ranking that does not have it. If one ranking is empty, the order of the other is kept.
"""

import numpy as np

from retbench.retrievers.ranking import Ranking, select_top_k

MIN_RANGE = 1e-9


def fuse_rankings(first: Ranking, second: Ranking, k: int) -> Ranking:
    """The top k of both rankings, with equal weights."""
    pairs = [_fuse_query(*query, k) for query in zip(first.rows, first.scores, second.rows, second.scores, strict=True)]
    return Ranking([rows for rows, _ in pairs], [scores for _, scores in pairs])


def _fuse_query(
    rows: np.ndarray, scores: np.ndarray, other_rows: np.ndarray, other_scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    union = np.union1d(rows, other_rows).astype(np.int64)
    total = np.zeros(len(union))
    for ranked_rows, values in ((rows, scores), (other_rows, other_scores)):
        total[np.searchsorted(union, ranked_rows)] += _scale_min_max(values) / 2
    top = select_top_k(total, k)
    return union[top], total[top]


def _scale_min_max(scores: np.ndarray) -> np.ndarray:
    if not len(scores):
        return scores
    low, high = float(scores.min()), float(scores.max())
    return np.asarray((scores.astype(np.float64) - low) / max(high - low, MIN_RANGE))
