"""Reranking by embeddings: candidates sorted by the similarity of their stored vectors and a query vector.

The rerankers differ in the query vector: the query's own, the query moved towards the first documents (Rocchio
feedback), or the embedding of a prompt that lists them (`listwise_embedding.py`). Documents are never embedded again.
The similarity is the method's: for cosine all vectors have length one, so it is their dot product too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retbench.cards.method import Similarity
from retbench.cards.reranker_settings import RocchioSettings
from retbench.rerankers.candidates import Candidates, iterate_windows, make_descending_scores

VectorLookup = Callable[[np.ndarray], np.ndarray]  # from rows of the corpus to vectors


class QueryEmbedder(Protocol):
    """Makes the query vector that the candidates are compared with."""

    def embed(self, candidates: Candidates) -> np.ndarray:
        """Return a vector for the query and its candidates; for cosine it has length one."""
        ...

    def collect_statistics(self) -> dict[str, Any]:
        """Return the counts for the record; empty if no text is read."""
        ...

    def sample(self) -> dict[str, Any]:
        """Return the first prompt; empty if there is none."""
        ...


@dataclass(frozen=True)
class EmbeddingReranker:
    """Sorts candidates by the similarity with the vector of a query embedder."""

    query_embedder: QueryEmbedder
    look_up_vectors: VectorLookup
    depth: int
    window: int = 0
    step: int = 10

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Sort by similarity. Similarities of several windows are not comparable; then scores only encode the order."""
        order, similarities = np.arange(len(candidates.rows)), np.zeros(0)
        windows = list(iterate_windows(len(order), self.window, self.step))
        for window in windows:
            new_order, similarities = self._sort_by_similarity(candidates.take(order[window]))
            order[window] = order[window][new_order]
        return order, similarities if len(windows) == 1 else make_descending_scores(len(order))

    def _sort_by_similarity(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        similarities = self.look_up_vectors(candidates.rows) @ self.query_embedder.embed(candidates)
        order = np.lexsort((candidates.rows, -similarities))  # ties are ordered by row, as in dense search
        return order, similarities[order].astype(np.float64)

    def collect_statistics(self) -> dict[str, Any]:
        """Return the counts of the query embedder."""
        return self.query_embedder.collect_statistics()

    def sample(self) -> dict[str, Any]:
        """Return the first prompt of the query embedder."""
        return self.query_embedder.sample()


@dataclass(frozen=True)
class StoredQueryEmbedder:
    """Uses the stored vector of the query."""

    query_vectors: np.ndarray

    def embed(self, candidates: Candidates) -> np.ndarray:
        """Return the stored vector."""
        return np.asarray(self.query_vectors[candidates.query_row])

    def collect_statistics(self) -> dict[str, Any]:
        """Return nothing: no text is read."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Return nothing: there is no prompt."""
        return {}


@dataclass(frozen=True)
class RocchioEmbedder:
    """Rocchio feedback: the first candidates count as relevant and, if gamma is set, the last as not relevant."""

    query_vectors: np.ndarray
    look_up_vectors: VectorLookup
    settings: RocchioSettings
    similarity: Similarity = "cosine"

    def embed(self, candidates: Candidates) -> np.ndarray:
        """Return the moved query vector; for cosine it is normalised."""
        settings = self.settings
        vector = settings.alpha * self.query_vectors[candidates.query_row]
        vector = vector + settings.beta * self.look_up_vectors(candidates.rows[: settings.documents]).mean(axis=0)
        if settings.gamma:
            vector = vector - settings.gamma * self.look_up_vectors(candidates.rows[-settings.documents :]).mean(axis=0)
        length = float(np.linalg.norm(vector)) if self.similarity == "cosine" else 1.0
        return np.asarray((vector / (length or 1.0)).astype(np.float32))

    def collect_statistics(self) -> dict[str, Any]:
        """Return nothing: no text is read."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Return nothing: there is no prompt."""
        return {}
