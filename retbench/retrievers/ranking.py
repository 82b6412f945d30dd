"""A ranking: for every query, the document rows from best to worst.

The order is by (-score, document row), so ties do not depend on tile sizes or the order of shards. `lucene_index.py`
alone orders ties by document id, as Anserini does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retbench.corpora.collection import Collection


@dataclass(frozen=True)
class Ranking:
    """`rows[q]` and `scores[q]` are the document rows and scores of the q-th query of the collection."""

    rows: list[np.ndarray]
    scores: list[np.ndarray]

    def to_document_ids(self, collection: Collection) -> dict[str, list[str]]:
        """Document ids by query id."""
        ids = collection.corpus.read_ids()
        return {
            query: [ids[int(row)].as_py() for row in rows]
            for query, rows in zip(collection.queries.read_ids().to_pylist(), self.rows, strict=True)
        }

    def filter_and_cut(self, collection: Collection, drop_same_id: bool, depth: int) -> "Ranking":
        """Remove excluded documents (see `get_excluded_ids`), then keep the top `depth`."""
        rows, scores = [], []
        ids = collection.corpus.read_ids()
        for query, query_rows, values in zip(
            collection.queries.read_ids().to_pylist(), self.rows, self.scores, strict=True
        ):
            excluded = get_excluded_ids(collection, query, drop_same_id)
            is_kept = np.array(
                [not excluded or ids[int(row)].as_py() not in excluded for row in query_rows], dtype=bool
            )
            rows.append(query_rows[is_kept][:depth])
            scores.append(values[is_kept][:depth])
        return Ranking(rows, scores)


def get_excluded_ids(collection: Collection, query: str, drop_same_id: bool) -> frozenset[str]:
    """The documents that must not be ranked: those excluded for the query, and its own id if the task drops it."""
    return collection.excluded.get(query, frozenset()) | ({query} if drop_same_id else frozenset())


def merge_rankings(parts: Sequence[Ranking], k: int) -> Ranking:
    """The k best documents of every query, from rankings of different documents for the same queries."""
    merged = Ranking([], [])
    for query in range(len(parts[0].rows)):
        rows = np.concatenate([part.rows[query] for part in parts])
        scores = np.concatenate([part.scores[query] for part in parts])
        best = np.lexsort((rows, -scores))[:k]
        merged.rows.append(rows[best])
        merged.scores.append(scores[best])
    return merged


def select_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k largest scores. Ties go to the lower position."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return np.asarray(candidates[np.argsort(-scores[candidates], kind="stable")][:k])
