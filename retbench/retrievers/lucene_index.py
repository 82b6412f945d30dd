"""BM25 as a Lucene index scores it: the first stage of Anserini and Pyserini ("BM25 flat" on BEIR).

A term that occurs f times in a document adds

    w - w / (1 + f / (k1 (1 - b + b length / average length)))

with w = times in the query * ln(1 + (N - n + 0.5) / (n + 0.5)), if n of N documents contain it. Two things are
Lucene's own: the length of a document is stored in one byte (exact up to 40 words, then rounded down, by up to 11 %),
and a term's share is computed in float32. Documents without words are not counted in N.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.retrievers.lucene_terms import LuceneTermExtractor
from retbench.retrievers.ranking import Ranking, select_top_k

EXACT_LENGTHS = 24  # below this Lucene's byte holds the length itself; from there a float of four bits counts on


class LuceneIndex:
    """The postings of one corpus: for each term, its documents and their counts."""

    def __init__(self, settings: LexicalSettings, documents: Iterable[str], ids: Sequence[str]) -> None:
        self.extract_terms = LuceneTermExtractor()
        self.numbers: dict[str, int] = {}  # of terms, by first occurrence
        rows, terms, counts, lengths = [], [], [], []
        for row, words in enumerate(self.extract_terms(documents)):
            found = Counter(words)
            lengths.append(len(words))
            rows.append(np.full(len(found), row, dtype=np.int32))
            terms.append(np.array([self.numbers.setdefault(word, len(self.numbers)) for word in found], dtype=np.int32))
            counts.append(np.fromiter(found.values(), dtype=np.float32, count=len(found)))
        numbers = np.concatenate([np.empty(0, dtype=np.int32), *terms])
        order = np.argsort(numbers, kind="stable")
        self.rows = np.concatenate([np.empty(0, dtype=np.int32), *rows])[order]
        self.counts = np.concatenate([np.empty(0, dtype=np.float32), *counts])[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(self.numbers)))]).astype(int)
        self.documents, self.indexed = len(lengths), int(np.count_nonzero(lengths))
        self.by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        self.norms = self._compute_norms(settings, np.array(lengths, dtype=np.int64))

    def _compute_norms(self, settings: LexicalSettings, lengths: np.ndarray) -> np.ndarray:
        """One over k1 (1 - b + b length / average length), as Lucene computes it in float32."""
        k1, b, one = np.float32(settings.k1), np.float32(settings.b), np.float32(1)
        average = np.float32(lengths.sum() / max(self.indexed, 1))
        stored = round_lengths(lengths).astype(np.float32)
        return one / (k1 * ((one - b) + b * stored / max(average, np.float32(1e-9))))

    def search(self, queries: Iterable[str], k: int) -> Ranking:
        """The k best documents of every query; equal scores are ordered by document id, as Anserini orders them."""
        rows, scores = [], []
        for words in self.extract_terms(queries):
            values = self._compute_scores(words)
            top_rows = self.by_id[select_top_k(values[self.by_id], k)]
            top_rows = top_rows[values[top_rows] > 0]
            rows.append(top_rows)
            scores.append(values[top_rows])
        return Ranking(rows, scores)

    def _compute_scores(self, words: list[str]) -> np.ndarray:
        """The score of every document; 0 if it has none of the words."""
        totals, one = np.zeros(self.documents), np.float32(1)
        for word, times in Counter(words).items():
            if (number := self.numbers.get(word)) is None:
                continue
            start, end = self.starts[number], self.starts[number + 1]
            rarity = np.float32(np.log(1 + (self.indexed - (end - start) + 0.5) / (end - start + 0.5)))
            weight, rows = np.float32(times) * rarity, self.rows[start:end]
            totals[rows] += weight - weight / (one + self.counts[start:end] * self.norms[rows])
        return totals.astype(np.float32)


def round_lengths(lengths: np.ndarray) -> np.ndarray:
    """The lengths as Lucene's byte keeps them: 24 exact numbers, then a leading bit and three more, rounded down."""
    rest = np.maximum(lengths - EXACT_LENGTHS, 0)
    dropped = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)
    return np.where(lengths < EXACT_LENGTHS, lengths, EXACT_LENGTHS + ((rest >> dropped) << dropped))
