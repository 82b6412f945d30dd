"""Sparse retrieval: an inverted index of weighted terms, with exact search."""

import numpy as np

from retbench.retrievers.ranking import Ranking, select_top_k


class InvertedIndex:
    """The score of a document is the sum of weight products over the terms it shares with the query."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.terms: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []

    def add_documents(self, rows: np.ndarray, terms: np.ndarray, weights: np.ndarray) -> None:
        """Add documents, each with a row of term ids and a row of weights. Weight 0 means no term."""
        entries = np.nonzero(weights)
        self.rows.append(rows[entries[0]])
        self.terms.append(terms[entries])
        self.weights.append(weights[entries])

    def search(self, terms: np.ndarray, weights: np.ndarray, k: int) -> Ranking:
        """The top k documents of every query. A document without a shared term is not retrieved."""
        index_terms, documents, values = map(np.concatenate, (self.terms, self.rows, self.weights))
        order = np.argsort(index_terms, kind="stable")
        index_terms, documents, values = index_terms[order], documents[order], values[order]
        ranked_rows, ranked_scores = [], []
        for query_terms, query_weights in zip(terms, weights, strict=True):
            scores = np.zeros(int(documents.max()) + 1 if len(documents) else 0, dtype=np.float64)
            for term, weight in zip(query_terms[query_weights > 0], query_weights[query_weights > 0], strict=True):
                first, last = np.searchsorted(index_terms, [term, term + 1])
                scores[documents[first:last]] += values[first:last] * weight  # each document has a term only once
            top_rows = select_top_k(scores, k)
            top_rows = top_rows[scores[top_rows] > 0]
            ranked_rows.append(top_rows)
            ranked_scores.append(scores[top_rows])
        return Ranking(ranked_rows, ranked_scores)
