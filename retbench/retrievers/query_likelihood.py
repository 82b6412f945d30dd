"""Query likelihood over words: which document would most likely have asked this query (Ponte and Croft 1998).

A document's language model is its own word counts, smoothed by the collection's with a Dirichlet prior of weight mu
(Zhai and Lafferty 2001):

    log P(q | d) = sum over the query's words w of log((count(w, d) + mu P(w | C)) / (|d| + mu))

Words the collection does not have say nothing and are left out. As with BM25, a document without any of the query's
words is not retrieved.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.retrievers.ranking import Ranking, select_top_k
from retbench.retrievers.stemmed_terms import TermExtractor


class DirichletIndex:
    """Postings of one corpus: for every word its documents and how often it stands in them."""

    def __init__(self, settings: LexicalSettings, documents: Iterable[str]) -> None:
        self.mu, self.terms = settings.mu, TermExtractor(settings)
        words = self.terms(documents)
        self.lengths = np.array([len(one) for one in words], dtype=np.float64)
        found: dict[str, list[tuple[int, int]]] = {}
        for row, one in enumerate(words):
            for word, count in Counter(one).items():
                found.setdefault(word, []).append((row, count))
        self.postings = {word: np.array(pairs).T for word, pairs in found.items()}

    def search(self, queries: Iterable[str], k: int) -> Ranking:
        """The k best documents of every query, with the logarithm of the query's likelihood."""
        rows, scores = [], []
        for words in self.terms(queries):
            values, touched = self._compute_log_likelihoods(words)
            found = select_top_k(values, k)
            found = found[touched[found]]
            rows.append(found)
            scores.append(values[found])
        return Ranking(rows, scores)

    def compute_log_likelihoods(self, query: str) -> np.ndarray:
        """The logarithm of one query's likelihood for every document, minus infinity where no word is shared."""
        return self._compute_log_likelihoods(self.terms([query])[0])[0]

    def _compute_log_likelihoods(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm for every document, minus infinity where no word is shared; and where one is."""
        total, mu = self.lengths.sum(), self.mu
        values, touched = np.zeros(len(self.lengths)), np.zeros(len(self.lengths), dtype=bool)
        for word, times in Counter(words).items():
            if word not in self.postings:
                continue
            documents, counts = self.postings[word]
            prior = mu * counts.sum() / total
            smoothed = np.full(len(values), prior)
            smoothed[documents] += counts
            values += times * (np.log(smoothed) - np.log(self.lengths + mu))
            touched[documents] = True
        return np.where(touched, values, -np.inf), touched
