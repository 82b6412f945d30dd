"""An inverted index of weighted terms, with exact search."""

import numpy as np

from retbench.retrievers.ranking import Ranking, select_top_k
from retbench.store.shard_store import VectorBlock


class InvertedIndex:
    """The score of a document is the sum of weight products over the terms it shares with the query."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.terms: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []

    def add_block(self, block: VectorBlock) -> None:
        """Add documents with their weighted terms. A document has a term only once; weight 0 means no term."""
        terms, is_used = _get_terms(block), block.vectors != 0
        self.rows.append(np.repeat(block.rows, np.diff(block.get_offsets()))[is_used])
        self.terms.append(terms[is_used])
        self.weights.append(block.vectors[is_used])

    def search(self, queries: list[VectorBlock], k: int) -> Ranking:
        """The top k documents of every query. A document without a shared term is not retrieved."""
        index_terms, documents, values = map(np.concatenate, (self.terms, self.rows, self.weights))
        order = np.argsort(index_terms, kind="stable")
        index_terms, documents, values = index_terms[order], documents[order], values[order]
        size = int(documents.max()) + 1 if len(documents) else 0
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for block in queries:
            terms, offsets = _get_terms(block), block.get_offsets()
            firsts, lasts = (np.searchsorted(index_terms, terms, side=side) for side in ("left", "right"))
            for query, row in enumerate(block.rows.tolist()):
                scores = np.zeros(size, dtype=np.float64)
                for entry in range(offsets[query], offsets[query + 1]):
                    postings = slice(firsts[entry], lasts[entry])
                    scores[documents[postings]] += values[postings] * block.vectors[entry]
                top_rows = select_top_k(scores, k)
                top_rows = top_rows[scores[top_rows] > 0]
                found[row] = (top_rows, scores[top_rows])
        ordered = [found[row] for row in sorted(found)]
        return Ranking([rows for rows, _ in ordered], [scores for _, scores in ordered])


def _get_terms(block: VectorBlock) -> np.ndarray:
    if block.terms is None:
        raise TypeError("these vectors have no terms")
    return block.terms
