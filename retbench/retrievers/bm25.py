"""BM25 with the library bm25s: the baseline for dense retrievers.

A document without any of the query's words is not retrieved; equal scores are ordered by document row.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.retrievers.ranking import Ranking, select_top_k
from retbench.retrievers.stemmed_terms import TermExtractor, import_bm25s


class BM25Index:
    """A BM25 index of one corpus."""

    def __init__(self, settings: LexicalSettings, documents: Iterable[str]) -> None:
        bm25s = import_bm25s()  # imported here because dense runs do not need it

        self.terms = TermExtractor(settings)
        self.index = bm25s.BM25(method=settings.variant, k1=settings.k1, b=settings.b)
        self.index.index(self.terms(documents), show_progress=False)

    def search(self, queries: Iterable[str], k: int) -> Ranking:
        """The k best documents of every query."""
        rows, scores = [], []
        for values in self._score_queries(queries):
            top_rows = select_top_k(values, k)
            top_rows = top_rows[values[top_rows] > 0]
            rows.append(top_rows)
            scores.append(values[top_rows])
        return Ranking(rows, scores)

    def _score_queries(self, queries: Iterable[str]) -> Iterator[np.ndarray]:
        for words in self.terms(queries):
            known = [word for word in words if word in self.index.vocab_dict]
            no_scores = np.zeros(self.index.scores["num_docs"], dtype=np.float32)
            yield self.index.get_scores(known) if known else no_scores
