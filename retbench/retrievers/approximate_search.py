"""Approximate search with faiss. Its recall is measured against exact search for a sample of the queries.

The index is in memory, with all vectors in float32. While it is built, the same blocks go through exact search for the
sample, so nothing is read or embedded twice.
"""

import math
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from retbench.cards.ann_settings import AnnSettings, HnswSettings, IvfSettings, format_ann_settings
from retbench.cards.installation import suggest_extra
from retbench.engines.memory import get_thread_count
from retbench.errors import MissingError
from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

RECALL_QUERIES = 100  # queries that are also searched exactly
TRAINING_VECTORS_PER_LIST = 64  # vectors per list for training the centroids


def search_approximately(
    ann_settings: AnnSettings, queries: np.ndarray, blocks: Iterable[VectorBlock], k: int, documents: int
) -> tuple[Ranking, dict[str, Any]]:
    """The approximate top-k of every query, and the recall against exact search."""
    index = ApproximateIndex(ann_settings, documents)
    sample = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), RECALL_QUERIES)).astype(int))
    exact_ranking = exact_search.search_exactly(queries[sample], index.index_while_streaming(blocks), k)
    ranking = index.search(queries, k)
    shares = [
        len(np.intersect1d(rows, ranking.rows[query])) / len(rows)
        for query, rows in zip(sample, exact_ranking.rows, strict=True)
        if len(rows)
    ]
    recall = float(np.mean(shares)) if shares else 1.0
    return ranking, {
        "search": format_ann_settings(ann_settings),
        "recall": recall,
        "at": k,
        "sampled_queries": len(sample),
    }


class ApproximateIndex:
    """A faiss index, built from a stream of blocks."""

    def __init__(self, ann_settings: AnnSettings, documents: int) -> None:
        self.ann_settings, self.documents = ann_settings, documents
        self.faiss = _import_faiss()
        self.faiss.omp_set_num_threads(get_thread_count())
        self.index: Any = None
        self.waiting: list[np.ndarray] = []  # vectors not yet added
        self.rows: list[np.ndarray] = []

    @property
    def list_count(self) -> int:
        """The number of lists of an IVF index."""
        list_count = (self.ann_settings.lists if isinstance(self.ann_settings, IvfSettings) else 0) or int(
            4 * math.sqrt(self.documents)
        )
        return max(1, min(list_count, self.documents))

    def index_while_streaming(self, blocks: Iterable[VectorBlock]) -> Iterator[VectorBlock]:
        """Add each block to the index, and yield it."""
        needed = TRAINING_VECTORS_PER_LIST * self.list_count if isinstance(self.ann_settings, IvfSettings) else 0
        for block in blocks:
            self.rows.append(block.rows)
            self.waiting.append(np.ascontiguousarray(block.vectors, dtype=np.float32))
            if self.index is not None or sum(map(len, self.waiting)) >= needed:
                self._add_waiting_vectors()
            yield block
        self._add_waiting_vectors()

    def _add_waiting_vectors(self) -> None:
        if not self.waiting:
            return
        vectors = np.concatenate(self.waiting)
        self.waiting = []
        if self.index is None:
            self.index = self._create_index(vectors)
        self.index.add(vectors)

    def _create_index(self, vectors: np.ndarray) -> Any:
        """An empty index. An IVF index is trained on the first vectors."""
        width, product = vectors.shape[1], self.faiss.METRIC_INNER_PRODUCT
        if isinstance(self.ann_settings, HnswSettings):
            graph = self.faiss.IndexHNSWFlat(width, self.ann_settings.links, product)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = self.ann_settings.building, self.ann_settings.breadth
            return graph
        index = self.faiss.IndexIVFFlat(
            self.faiss.IndexFlatIP(width), width, min(self.list_count, len(vectors)), product
        )
        index.nprobe = self.ann_settings.probes
        index.cp.min_points_per_centroid = 1  # no warning for a small corpus
        index.train(vectors)
        return index

    def search(self, queries: np.ndarray, k: int) -> Ranking:
        """The approximate top-k; fewer than k if the probed lists have fewer documents."""
        if self.index is None:
            return Ranking([np.empty(0, dtype=np.int64)] * len(queries), [np.empty(0, dtype=np.float32)] * len(queries))
        scores, positions = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        all_rows, ranking = np.concatenate(self.rows), Ranking([], [])
        for query_scores, query_positions in zip(scores, positions, strict=True):
            is_found = query_positions >= 0
            rows, found_scores = all_rows[query_positions[is_found]], query_scores[is_found]
            order = np.lexsort((rows, -found_scores))
            ranking.rows.append(rows[order])
            ranking.scores.append(found_scores[order])
        return ranking


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as problem:
        raise MissingError("approximate search needs the package faiss-cpu", suggest_extra("ann")) from problem
    module: ModuleType = faiss
    return module
