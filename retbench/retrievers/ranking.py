"""The ranking: for every query, document rows best first.

Order is by (-score, document row): a tie never depends on the size of a tile or the order of shards.
"""

from dataclasses import dataclass

import numpy as np

from retbench.corpora.collection import Collection


@dataclass(frozen=True)
class Ranking:
    """`rows[q]` and `scores[q]` are equally long; row q belongs to the q-th query of the collection."""

    rows: list[np.ndarray]
    scores: list[np.ndarray]

    def to_document_ids(self, collection: Collection) -> dict[str, list[str]]:
        """Query id to document ids."""
        ids = collection.corpus.ids()
        return {
            query: [ids[int(row)].as_py() for row in rows]
            for query, rows in zip(collection.queries.ids().to_pylist(), self.rows, strict=True)
        }

    def filter_and_cut(self, collection: Collection, drop_same_id: bool, depth: int) -> "Ranking":
        """Cut to the depth, after what may not be ranked was removed: excluded documents, and the query's own id."""
        rows, scores = [], []
        ids = collection.corpus.ids()
        for query, found, values in zip(collection.queries.ids().to_pylist(), self.rows, self.scores, strict=True):
            out = get_excluded_ids(collection, query, drop_same_id)
            kept = np.array([not out or ids[int(row)].as_py() not in out for row in found], dtype=bool)
            rows.append(found[kept][:depth])
            scores.append(values[kept][:depth])
        return Ranking(rows, scores)


def get_excluded_ids(collection: Collection, query: str, drop_same_id: bool) -> frozenset[str]:
    """What may not be ranked for a query: documents excluded for it, and its own id where the task drops that."""
    return collection.excluded.get(query, frozenset()) | ({query} if drop_same_id else frozenset())


def select_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k best scores, ties to the lower position."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return np.asarray(candidates[np.argsort(-scores[candidates], kind="stable")][:k])
