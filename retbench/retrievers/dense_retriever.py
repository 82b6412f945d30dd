"""Dense retrieval: queries and documents become vectors in the embedding cache; exact search ranks them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from retbench.cards.ann_settings import AnnSettings
from retbench.cards.method import ROLES, Role, Similarity
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.encoders.batch_plan import SHARD_ROWS
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.postprocessing import fit_postprocessing
from retbench.encoders.shard_tasks import ShardWorkers
from retbench.encoders.sparse_encoder import split_rows
from retbench.errors import UsageError
from retbench.records.phase_timer import PhaseTimer
from retbench.retrievers import approximate_search
from retbench.retrievers.exact_search import ExactSearch
from retbench.retrievers.inverted_index import InvertedIndex
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.score_fusion import fuse_rankings
from retbench.store.embedding_cache import open_store
from retbench.store.shard_store import ShardStore, VectorBlock

FUSION_DEPTH = 1000  # documents of each ranking that is fused, as in PromptReps; scores depend on it
TOKEN_BUDGETS = {"cpu": 2048, "mps": 16384, "cuda": 65536}  # tokens per batch; on a CPU, per thread
# these engines batch themselves; for an endpoint, which receives texts, in bytes
EXTERNAL_TOKEN_BUDGETS = {"endpoint": 1 << 16, "vllm": 1 << 18}


def compute_token_budget(device: str, threads: int) -> int:
    """Return the largest number of tokens in a batch on this type of device."""
    return TOKEN_BUDGETS[device] * (threads if device == "cpu" else 1)


VectorTransform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class DenseRetriever:
    """Ranks one collection with one encoder. Only the workers load the model; cached vectors need no workers."""

    model: str
    spec: EncoderSpec
    workers: ShardWorkers
    task: TaskCard
    collection: Collection
    timer: PhaseTimer
    shard_rows: int = SHARD_ROWS
    adaptor: VectorTransform | None = None
    ann_settings: AnnSettings | None = None  # exact search without it
    ann_facts: dict[str, Any] = field(default_factory=dict)  # the measured recall of approximate search

    def rank(self, k: int) -> Ranking:
        """Return the k best documents of every query."""
        for name, role in zip(("embed queries", "embed and search documents"), ROLES, strict=True):
            self.timer.add_seconds(name, self._open_store(role).compute_total_cost().seconds / self.workers.count)
        with self.timer.time_phase("embed queries", "texts", self.workers.peak_throughput):
            queries = self._stack_queries(list(self._embed("query")))
        with self.timer.time_phase("embed and search documents", "texts", self.workers.peak_throughput):
            if self.spec.method.kind != "dense":
                return self._rank_by_terms(queries, k)
            transform = self.build_transform()
            if self.ann_settings:
                return self._rank_approximately(self.ann_settings, transform, queries, k)
            search = ExactSearch(transform(queries), k)
            for block in self._embed("document"):
                search.add_block(VectorBlock(block.rows, transform(block.vectors)))
            return search.finish()

    def _rank_approximately(
        self, ann_settings: AnnSettings, transform: VectorTransform, queries: np.ndarray, k: int
    ) -> Ranking:
        transformed = (VectorBlock(block.rows, transform(block.vectors)) for block in self._embed("document"))
        ranking, recall_facts = approximate_search.search_approximately(
            ann_settings, transform(queries), transformed, k, len(self.collection.corpus)
        )
        self.ann_facts.update(search=recall_facts)
        return ranking

    def _rank_by_terms(self, queries: np.ndarray, k: int) -> Ranking:
        """Rank by terms, or by terms and vectors; both rankings are cut as in PromptReps before they are fused."""
        split_queries, depth = split_rows(queries), max(k, FUSION_DEPTH)
        index, search = InvertedIndex(), ExactSearch(split_queries.dense, depth)
        for block in self._embed("document"):
            documents = split_rows(block.vectors)
            index.add_documents(block.rows, documents.terms, documents.weights)
            search.add_block(VectorBlock(block.rows, documents.dense))
        dense, sparse = search.finish(), index.search(split_queries.terms, split_queries.weights, depth)
        if self.spec.method.kind == "sparse":
            return sparse
        drop = self.task.same_id == "drop"
        dense, sparse = (ranking.filter_and_cut(self.collection, drop, FUSION_DEPTH) for ranking in (dense, sparse))
        return fuse_rankings(dense, sparse, k)

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
        return self._stack_queries(list(self._embed("query")))

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

    def collect_facts(self) -> dict[str, Any]:
        """Return by role: tokens, truncation and plan as stored, and the total cost over all runs."""
        stores = {role: self._open_store(role) for role in ROLES}
        roles: dict[str, Any] = {
            role: {**store.load_or_create_plan(dict), **asdict(store.compute_total_cost()), **store.read_manifest()}
            for role, store in stores.items()
        }
        return {**roles, **self.ann_facts}

    def _build_job(self, role: Role) -> EmbeddingJob:
        texts = self.collection.queries if role == "query" else self.collection.corpus
        engine_name = self.spec.engine.partition(":")[0]
        budget = EXTERNAL_TOKEN_BUDGETS.get(engine_name, compute_token_budget(*self.workers.device))
        return EmbeddingJob(texts, self.task.fields, role, budget, self.shard_rows)

    def _open_store(self, role: Role) -> ShardStore:
        key = self._build_job(role).compute_key(self.spec.describe_vectors(role))
        return open_store(self.model, key, self.spec.vector_dtype)

    def _embed(self, role: Role) -> Iterator[VectorBlock]:
        job, store = self._build_job(role), self._open_store(role)
        store.record_use(f"{self.task.name} ({self.spec.method.name})")
        return embed_texts(self.workers, job, store, self.timer.progress.advance)

    def _stack_queries(self, blocks: list[VectorBlock]) -> np.ndarray:
        matrix = np.empty((len(self.collection.queries), blocks[0].vectors.shape[1]), dtype=np.float32)
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
