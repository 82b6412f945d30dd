"""Dense retrieval: queries and documents become vectors in the embedding cache; exact search ranks them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from retbench.cards.ann_settings import AnnSettings
from retbench.cards.method import Similarity
from retbench.encoders.embed_texts import embed_texts
from retbench.encoders.postprocessing import fit_postprocessing
from retbench.errors import UsageError
from retbench.retrievers import approximate_search
from retbench.retrievers.embedding_retriever import EmbeddingRetriever
from retbench.retrievers.multi_gpu_search import count_search_gpus, search_on_gpus
from retbench.retrievers.ranking import Ranking
from retbench.store.embedding_cache import open_store
from retbench.store.shard_store import VectorBlock

VectorTransform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class DenseRetriever(EmbeddingRetriever):
    """Ranks one collection by one vector per text."""

    adaptor: VectorTransform | None = None
    ann_settings: AnnSettings | None = None  # exact search without it

    def _search(self, queries: list[VectorBlock], k: int) -> Ranking:
        transform, stacked = self.build_transform(), stack_rows(queries)
        if self.ann_settings:
            return self._rank_approximately(self.ann_settings, transform, stacked, k)
        blocks = (VectorBlock(block.rows, transform(block.vectors)) for block in self._embed("document"))
        gpus = count_search_gpus(self.workers.device[0], self.workers.count)
        return search_on_gpus(transform(stacked), blocks, k, gpus)

    def _rank_approximately(
        self, ann_settings: AnnSettings, transform: VectorTransform, queries: np.ndarray, k: int
    ) -> Ranking:
        def read_blocks() -> Iterator[VectorBlock]:
            return (VectorBlock(block.rows, transform(block.vectors)) for block in self._embed("document"))

        ranking, recall_facts = approximate_search.search_approximately(
            ann_settings, transform(queries), read_blocks, k, len(self.collection.corpus)
        )
        self.search_facts.update(search=recall_facts)
        return ranking

    def build_transform(self) -> VectorTransform:
        """Return the function that is applied to every cached vector before vectors are compared."""
        transform, width = self._build_postprocessing(), self.spec.dimensions
        return (
            transform
            if width is None
            else lambda vectors: truncate_dimensions(transform(vectors), width, self.spec.method.similarity)
        )

    def _build_postprocessing(self) -> VectorTransform:
        adaptor = self.adaptor
        if self.spec.method.post == "none":
            return adaptor or (lambda vectors: vectors)
        postprocess = fit_postprocessing(self.spec.method, self._embed("document"))
        return (lambda vectors: adaptor(postprocess(vectors))) if adaptor else postprocess

    def embed_queries(self) -> np.ndarray:
        """Return the cached vector of every query; missing vectors are computed."""
        return stack_rows(list(self._embed("query")))

    def embed_corpus(self) -> np.ndarray:
        """Return the cached vector of every document; missing vectors are computed."""
        return select_rows(self._embed("document"), np.arange(len(self.collection.corpus)))

    def embed_documents(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some documents. If the corpus is not cached, only these are computed and cached."""
        if self._open_store("document").is_complete():
            return select_rows(self._embed("document"), rows)
        job = replace(self._build_job("document"), texts=self.collection.corpus.take(rows))
        store = open_store(self.model, job.compute_key(self.spec.describe_vectors("document")), self.spec.vector_dtype)
        store.record_use(f"{self.task.name} ({self.spec.method.name}, candidates)")
        return select_rows(embed_texts(self.workers, job, store, self.timer.progress.advance), np.arange(len(rows)))


def stack_rows(blocks: list[VectorBlock]) -> np.ndarray:
    """Return the rows of all blocks as one matrix, in their order; no row is missing."""
    matrix = np.empty((sum(len(block.rows) for block in blocks), blocks[0].vectors.shape[1]), dtype=np.float32)
    for block in blocks:
        matrix[block.rows] = block.vectors
    return matrix


def truncate_dimensions(vectors: np.ndarray, width: int, similarity: Similarity = "cosine") -> np.ndarray:
    """Keep the first numbers of each vector, as Matryoshka training allows; for cosine, normalise again."""
    if width > vectors.shape[1]:
        raise UsageError(f"--set dimensions={width}: the vectors have {vectors.shape[1]}", "give that many or fewer")
    first = vectors[:, :width]
    if similarity == "dot":
        return np.ascontiguousarray(first)
    return np.asarray(first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12))


def select_rows(blocks: Iterable[VectorBlock], rows: np.ndarray) -> np.ndarray:
    """Select the vectors of some rows, given in rising order, from a stream of blocks."""
    matrix = np.empty((len(rows), 0), dtype=np.float32)
    for block in blocks:
        if not matrix.shape[1]:
            matrix = np.empty((len(rows), block.vectors.shape[1]), dtype=np.float32)
        positions = np.minimum(np.searchsorted(rows, block.rows), len(rows) - 1)
        is_selected = rows[positions] == block.rows
        matrix[positions[is_selected]] = block.vectors[is_selected]
    return matrix
