"""Scores of a cross-encoder for the pairs of a training set: for filters of hard negatives, and as a teacher's."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from retbench.encoders.cross_encoder import CrossEncoder
from retbench.encoders.pair_tokenizers import join_tokenized_pairs
from retbench.errors import DataError
from retbench.records.phase_timer import AdvanceProgress
from retbench.store.pair_scores import Pair, PairScoreStore
from retbench.training import distributed
from retbench.training.training_set import TrainingSet

PAIRS_PER_CHUNK = 256  # what an interruption loses at most; batches of similar length are made inside of a chunk

Candidates = Sequence[tuple[int, ...]]  # for each query the rows of its passages


@dataclass(frozen=True)
class PairScorer:
    """A cross-encoder, loaded at the first pair whose score is not stored. `settings` are all that decides a score."""

    model: str
    settings: dict[str, Any]
    load: Callable[[], CrossEncoder]
    max_tokens: int

    def score_candidates(
        self, training_set: TrainingSet, candidates: Candidates, advance: AdvanceProgress
    ) -> list[np.ndarray]:
        """The score (a logit) of every query with each of its candidates. Processes divide the queries."""
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        starts = np.cumsum([0, *map(len, candidates)])
        scores, own_queries = np.zeros(int(starts[-1])), range(rank, len(candidates), processes)
        total, done = sum(len(candidates[query]) for query in own_queries), 0
        for chunk in _cut_chunks(candidates, own_queries):
            pairs = [
                (training_set.queries[query].text, [training_set.passages[row] for row in candidates[query]])
                for query in chunk
            ]
            chunk_scores, tokens = self._score_chunk(pairs)
            places = np.concatenate([np.arange(starts[query], starts[query + 1]) for query in chunk])
            scores[places] = chunk_scores
            done += len(places)
            advance(len(places), total, tokens, total - done)
        scores = distributed.sum_array(scores)
        return [scores[start:end] for start, end in pairwise(starts)]

    def measure_tokens(self, pairs: Sequence[tuple[str, list[str]]]) -> int:
        """Score pairs without keeping the scores; return their tokens."""
        tokenized = join_tokenized_pairs([self._tokenize_pairs(query, documents) for query, documents in pairs])
        self._cross_encoder.score_pairs(tokenized, self.max_tokens)
        return int(tokenized.lengths.sum())

    @cached_property
    def _cross_encoder(self) -> CrossEncoder:
        return self.load()

    @cached_property
    def _store(self) -> PairScoreStore:
        return PairScoreStore.open_for(self.model, self.settings)

    def _tokenize_pairs(self, query: str, documents: list[str]) -> Any:
        return self._cross_encoder.pair_tokenizer.tokenize_pairs(query, documents)

    def _score_chunk(self, pairs: Sequence[tuple[str, list[str]]]) -> tuple[np.ndarray, int]:
        """The scores of a chunk's pairs, stored ones first; and the tokens that were computed."""
        flat: list[Pair] = [(query, document) for query, documents in pairs for document in documents]
        stored = self._store.find_scores(flat)
        missing: dict[str, list[str]] = {}
        for (query, document), score in zip(flat, stored, strict=True):
            if score is None:
                missing.setdefault(query, []).append(document)
        if not missing:
            return np.array(stored, dtype=float), 0
        tokenized = join_tokenized_pairs([self._tokenize_pairs(*entry) for entry in missing.items()])
        computed = self._cross_encoder.score_pairs(tokenized, self.max_tokens)
        new_pairs = [(query, document) for query, documents in missing.items() for document in documents]
        self._require_finite(new_pairs, computed)
        self._store.add_scores(new_pairs, computed.tolist())
        new = dict(zip(new_pairs, computed.tolist(), strict=True))
        scores = [new[pair] if score is None else score for pair, score in zip(flat, stored, strict=True)]
        return np.array(scores, dtype=float), int(tokenized.lengths.sum())

    def _require_finite(self, pairs: Sequence[Pair], scores: np.ndarray) -> None:
        if not (is_finite := np.isfinite(scores)).all():
            query, document = pairs[int(np.argmin(is_finite))]
            raise DataError(
                f"{self.model} gives no finite score to the query {query[:60]!r} with the passage {document[:60]!r}",
                "use dtype=float32, or another cross-encoder",
            )


def _cut_chunks(candidates: Candidates, queries: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive queries with about `PAIRS_PER_CHUNK` pairs; those without candidates are left out."""
    chunk, pairs = list[int](), 0
    for query in queries:
        if candidates[query]:
            chunk.append(query)
            pairs += len(candidates[query])
        if pairs >= PAIRS_PER_CHUNK:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """The sigmoid; of a large negative logit without overflow."""
    return np.array([1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in logits])
