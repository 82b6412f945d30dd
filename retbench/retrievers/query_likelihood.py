"""Query likelihood with unigram language models (Ponte and Croft 1998): P(query | document).

The language model of a document is its word counts, smoothed with those of the collection by a Dirichlet prior of
weight mu (Zhai and Lafferty 2001):

    log P(q | d) = sum over the query's words w of log((count(w, d) + mu P(w | C)) / (|d| + mu))

Words that are not in the collection are ignored. As with BM25, a document without any word of the query is not
retrieved.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.retrievers.ranking import Ranking, select_top_k
from retbench.retrievers.stemmed_terms import TermExtractor


class DirichletIndex:
    """The postings of one corpus: for each word, its documents and their counts."""

    def __init__(self, settings: LexicalSettings, documents: Iterable[str]) -> None:
        self.mu, self.terms = settings.mu, TermExtractor(settings)
        words = self.terms(documents)
        self.lengths = np.array([len(text_words) for text_words in words], dtype=np.float64)
        postings: dict[str, list[tuple[int, int]]] = {}
        for row, text_words in enumerate(words):
            for word, count in Counter(text_words).items():
                postings.setdefault(word, []).append((row, count))
        self.postings = {word: np.array(pairs).T for word, pairs in postings.items()}

    def search(self, queries: Iterable[str], k: int) -> Ranking:
        """The top k documents of every query, scored by log-likelihood."""
        rows, scores = [], []
        for words in self.terms(queries):
            values, shares_word = self._compute_log_likelihoods(words)
            top_rows = select_top_k(values, k)
            top_rows = top_rows[shares_word[top_rows]]
            rows.append(top_rows)
            scores.append(values[top_rows])
        return Ranking(rows, scores)

    def compute_log_likelihoods(self, query: str) -> np.ndarray:
        """The log-likelihood of one query for every document; minus infinity if they share no word."""
        return self._compute_log_likelihoods(self.terms([query])[0])[0]

    def _compute_log_likelihoods(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The log-likelihood for every document (minus infinity without a shared word), and which ones share a word."""
        total, mu = self.lengths.sum(), self.mu
        values, shares_word = np.zeros(len(self.lengths)), np.zeros(len(self.lengths), dtype=bool)
        for word, times in Counter(words).items():
            if word not in self.postings:
                continue
            documents, counts = self.postings[word]
            prior = mu * counts.sum() / total
            smoothed = np.full(len(values), prior)
            smoothed[documents] += counts
            values += times * (np.log(smoothed) - np.log(self.lengths + mu))
            shares_word[documents] = True
        return np.where(shares_word, values, -np.inf), shares_word
