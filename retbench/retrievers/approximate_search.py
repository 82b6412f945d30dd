"""Approximate search by faiss, with its recall measured against exact search on some of the queries.

The index lies in memory, with all vectors in float32. While it is filled, the same stream of blocks passes exact search
for a sample of the queries, so nothing is read or embedded twice.
"""

import math
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from retbench.cards.ann_settings import AnnSettings, HnswSettings, IvfSettings, format_ann_settings
from retbench.engines.memory import threads
from retbench.errors import MissingError
from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

RECALL_QUERIES = 100  # queries whose exact ranking is known
TRAINING_VECTORS_PER_LIST = 64  # vectors a list whose centres are learned


def search_approximately(
    ann_settings: AnnSettings, queries: np.ndarray, blocks: Iterable[VectorBlock], k: int, documents: int
) -> tuple[Ranking, dict[str, Any]]:
    """About the k best documents of every query, and how much of the exact ranking that is."""
    index = ApproximateIndex(ann_settings, documents)
    chosen = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), RECALL_QUERIES)).astype(int))
    truth = exact_search.search(queries[chosen], index.index_while_streaming(blocks), k)
    ranking = index.search(queries, k)
    shares = [
        len(np.intersect1d(rows, ranking.rows[query])) / len(rows)
        for query, rows in zip(chosen, truth.rows, strict=True)
        if len(rows)
    ]
    recall = float(np.mean(shares)) if shares else 1.0
    return ranking, {
        "search": format_ann_settings(ann_settings),
        "recall": recall,
        "at": k,
        "sampled_queries": len(chosen),
    }


class ApproximateIndex:
    """An index that is filled by a stream of blocks."""

    def __init__(self, ann_settings: AnnSettings, documents: int) -> None:
        self.ann_settings, self.documents = ann_settings, documents
        self.faiss = _import_faiss()
        self.faiss.omp_set_num_threads(threads())
        self.index: Any = None
        self.waiting: list[np.ndarray] = []  # vectors before the centres are learned
        self.rows: list[np.ndarray] = []

    @property
    def list_count(self) -> int:
        """How many lists an inverted index has."""
        wanted = (self.ann_settings.lists if isinstance(self.ann_settings, IvfSettings) else 0) or int(
            4 * math.sqrt(self.documents)
        )
        return max(1, min(wanted, self.documents))

    def index_while_streaming(self, blocks: Iterable[VectorBlock]) -> Iterator[VectorBlock]:
        """Add every block that passes."""
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
        """An empty index; its centres are learned from the first vectors, of every length."""
        width, product = vectors.shape[1], self.faiss.METRIC_INNER_PRODUCT
        if isinstance(self.ann_settings, HnswSettings):
            graph = self.faiss.IndexHNSWFlat(width, self.ann_settings.links, product)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = self.ann_settings.building, self.ann_settings.breadth
            return graph
        index = self.faiss.IndexIVFFlat(
            self.faiss.IndexFlatIP(width), width, min(self.list_count, len(vectors)), product
        )
        index.nprobe = self.ann_settings.probes
        index.cp.min_points_per_centroid = 1  # a small corpus is no reason to warn on stderr
        index.train(vectors)
        return index

    def search(self, queries: np.ndarray, k: int) -> Ranking:
        """The best that are found; fewer than k where the lists looked at hold fewer."""
        if self.index is None:
            return Ranking([np.empty(0, dtype=np.int64)] * len(queries), [np.empty(0, dtype=np.float32)] * len(queries))
        scores, places = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        every, ranked = np.concatenate(self.rows), Ranking([], [])
        for values, found in zip(scores, places, strict=True):
            there = found >= 0
            rows, kept = every[found[there]], values[there]
            order = np.lexsort((rows, -kept))
            ranked.rows.append(rows[order])
            ranked.scores.append(kept[order])
        return ranked


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as problem:
        raise MissingError("approximate search needs the package faiss-cpu", "pip install 'retbench[ann]'") from problem
    module: ModuleType = faiss
    return module
