"""Reranking by a cross-encoder: every candidate is read together with the query and sorted by its score."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retbench.encoders.cross_encoder import CrossEncoder
from retbench.encoders.pair_tokenizers import TokenizedPairs, show_pair
from retbench.rerankers.candidates import Candidates


@dataclass
class PairCounts:
    """Pairs and tokens over all queries. The field names are keys of the record."""

    pairs: int = 0
    read: int = 0
    pairs_cut: int = 0

    def count_pairs(self, pairs: TokenizedPairs) -> None:
        """Count the pairs of one query."""
        self.pairs += len(pairs.inputs)
        self.read += int(pairs.lengths.sum())
        self.pairs_cut += sum(pairs.is_cut)


@dataclass
class CrossEncoderReranker:
    """Sorts candidates by the score of query and document together."""

    cross_encoder: CrossEncoder
    load_text: Callable[[int], str]
    depth: int
    max_tokens: int  # of a batch
    counts: PairCounts = field(default_factory=PairCounts)
    first_pair: dict[str, Any] = field(default_factory=dict)

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Sort by descending score; ties keep the first stage's order."""
        documents, tokenizer = [self.load_text(int(row)) for row in candidates.rows], self.cross_encoder.pair_tokenizer
        pairs = tokenizer.tokenize_pairs(candidates.query, documents)
        scores = self.cross_encoder.score_pairs(pairs, self.max_tokens)
        self.counts.count_pairs(pairs)
        if not self.first_pair:
            self.first_pair = {**show_pair(tokenizer, candidates.query, documents[0]), "score": float(scores[0])}
        order = np.argsort(-scores, kind="stable")
        return order, scores[order]

    def collect_statistics(self) -> dict[str, Any]:
        """Return pairs, tokens and pairs that were cut."""
        return vars(self.counts)

    def sample(self) -> dict[str, Any]:
        """Return the first pair as the model read it, and its score."""
        return self.first_pair
