"""The first stage of a collection made of candidate lists: their order, with their scores."""

import numpy as np

from retbench.corpora.collection import Collection
from retbench.errors import InapplicableError
from retbench.retrievers.ranking import Ranking


def rank_candidates(collection: Collection, k: int) -> Ranking:
    """Return the first k candidates of every query; a query without a list ranks nothing."""
    if not collection.candidates:
        raise InapplicableError(
            "the collection has no candidate lists", "use a first stage that searches, such as --model bm25-lucene"
        )
    row_by_id = {name: row for row, name in enumerate(collection.corpus.read_ids().to_pylist())}
    lists = [collection.candidates.get(query, ())[:k] for query in collection.queries.read_ids().to_pylist()]
    return Ranking(
        [np.array([row_by_id[document] for document, _ in listed], dtype=np.int64) for listed in lists],
        [np.array([score for _, score in listed], dtype=np.float64) for listed in lists],
    )
