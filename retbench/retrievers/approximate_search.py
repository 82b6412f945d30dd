"""Approximate search: an index of faiss, or compressed vectors (`compressed_search.py`). Its recall is measured.

The same blocks go through exact search for a sample of the queries. An index is in memory, with all vectors in float32.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from retbench.cards.ann_settings import (
    AnnSettings,
    BinarySettings,
    HnswSettings,
    Int8Settings,
    IvfSettings,
    format_ann_settings,
)
from retbench.engines.memory import get_thread_count
from retbench.errors import MissingError
from retbench.retrievers import exact_search
from retbench.retrievers.compressed_search import search_compressed
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock
from retbench.system.installation import suggest_extra

RECALL_QUERIES = 100  # queries that are also searched exactly
TRAINING_VECTORS_PER_LIST = 64  # vectors per list for training the centroids


def search_approximately(
    ann_settings: AnnSettings,
    queries: np.ndarray,
    read_blocks: Callable[[], Iterable[VectorBlock]],
    k: int,
    documents: int,
) -> tuple[Ranking, dict[str, Any]]:
    """The approximate top-k of every query, and the recall against exact search. Some kinds read the blocks twice."""
    sample = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), RECALL_QUERIES)).astype(int))
    exact = exact_search.ExactSearch(queries[sample], k)
    blocks = _search_while_streaming(exact, read_blocks())
    if isinstance(ann_settings, Int8Settings | BinarySettings):
        ranking = search_compressed(ann_settings, queries, blocks, read_blocks, k)
    else:
        index = ApproximateIndex(ann_settings, documents)
        index.add_blocks(blocks)
        ranking = index.search(queries, k)
    exact_ranking = exact.finish()
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


def _search_while_streaming(search: exact_search.ExactSearch, blocks: Iterable[VectorBlock]) -> Iterator[VectorBlock]:
    """Yield each block after the search has seen it."""
    for block in blocks:
        search.add_block(block)
        yield block


class ApproximateIndex:
    """A faiss index, built from a stream of blocks."""

    def __init__(self, ann_settings: IvfSettings | HnswSettings, documents: int) -> None:
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

    def add_blocks(self, blocks: Iterable[VectorBlock]) -> None:
        """Add all blocks to the index."""
        needed = TRAINING_VECTORS_PER_LIST * self.list_count if isinstance(self.ann_settings, IvfSettings) else 0
        for block in blocks:
            self.rows.append(block.rows)
            self.waiting.append(np.ascontiguousarray(block.vectors, dtype=np.float32))
            if self.index is not None or sum(map(len, self.waiting)) >= needed:
                self._add_waiting_vectors()
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
