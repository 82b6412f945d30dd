"""Documents drawn by chance: what a score is worth that needs no model.

The draw of a query depends on its id alone, so every run ranks the same documents, and a query keeps its own in another
split.
"""

import random

import numpy as np

from retbench.corpora.collection import Collection
from retbench.retrievers.ranking import Ranking


def rank_randomly(collection: Collection, k: int) -> Ranking:
    """Draw k documents for every query, in the order of the draw."""
    size = len(collection.corpus)
    k = min(k, size)
    draws = [
        np.array(random.Random(query).sample(range(size), k), dtype=np.int64)  # noqa: S311  # no secret
        for query in collection.queries.read_ids().to_pylist()
    ]
    scores = np.arange(k, 0, -1, dtype=np.float64) / k
    return Ranking(draws, [scores] * len(draws))
