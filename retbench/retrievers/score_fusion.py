"""Two rankings into one: scores are put between 0 and 1 for each query, then averaged.

As ranx's min-max and weighted sum, which PromptReps' hybrid.py calls: a document that one side did not retrieve has 0
there; where one side found nothing at all, the other's order stands.
"""

import numpy as np

from retbench.retrievers.ranking import Ranking, select_top_k

MIN_RANGE = 1e-9


def fuse_rankings(one: Ranking, other: Ranking, k: int) -> Ranking:
    """The k best of both, equally weighted."""
    pairs = [_fuse_query(*four, k) for four in zip(one.rows, one.scores, other.rows, other.scores, strict=True)]
    return Ranking([rows for rows, _ in pairs], [scores for _, scores in pairs])


def _fuse_query(
    rows: np.ndarray, scores: np.ndarray, other_rows: np.ndarray, other_scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    union = np.union1d(rows, other_rows).astype(np.int64)
    total = np.zeros(len(union))
    for found, values in ((rows, scores), (other_rows, other_scores)):
        total[np.searchsorted(union, found)] += _scale_min_max(values) / 2
    chosen = select_top_k(total, k)
    return union[chosen], total[chosen]


def _scale_min_max(scores: np.ndarray) -> np.ndarray:
    if not len(scores):
        return scores
    low, high = float(scores.min()), float(scores.max())
    return np.asarray((scores.astype(np.float64) - low) / max(high - low, MIN_RANGE))
