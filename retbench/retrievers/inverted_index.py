"""Sparse retrieval: an inverted index of weighted terms, searched exactly."""

import numpy as np

from retbench.retrievers.ranking import Ranking, select_top_k


class InvertedIndex:
    """Documents are added block by block; the score of a document is the sum of weight products over shared terms."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.terms: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []

    def add_documents(self, rows: np.ndarray, terms: np.ndarray, weights: np.ndarray) -> None:
        """Some documents, each with a row of terms and of weights; weight 0 is no term."""
        places = np.nonzero(weights)
        self.rows.append(rows[places[0]])
        self.terms.append(terms[places])
        self.weights.append(weights[places])

    def search(self, terms: np.ndarray, weights: np.ndarray, k: int) -> Ranking:
        """The k best documents of every query; one without a shared term is not retrieved."""
        known, owners, values = map(np.concatenate, (self.terms, self.rows, self.weights))
        order = np.argsort(known, kind="stable")
        known, owners, values = known[order], owners[order], values[order]
        found_rows, found_scores = [], []
        for query_terms, query_weights in zip(terms, weights, strict=True):
            scores = np.zeros(int(owners.max()) + 1 if len(owners) else 0, dtype=np.float64)
            for term, weight in zip(query_terms[query_weights > 0], query_weights[query_weights > 0], strict=True):
                first, last = np.searchsorted(known, [term, term + 1])
                scores[owners[first:last]] += values[first:last] * weight  # a document has a term once
            found = select_top_k(scores, k)
            found = found[scores[found] > 0]
            found_rows.append(found)
            found_scores.append(scores[found])
        return Ranking(found_rows, found_scores)
