"""Dense retrieval: queries and corpus become vectors through the store, and the corpus streams past exact search."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from retbench.cards.ann_settings import AnnSettings
from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.encoders.batch_plan import SHARD_ROWS
from retbench.encoders.embed_texts import Job, embed
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.postprocessing import fit_postprocessing
from retbench.encoders.shard_tasks import Workers
from retbench.encoders.sparse_encoder import split_rows
from retbench.errors import UsageError
from retbench.records.phase_timer import Meter
from retbench.retrievers import approximate_search
from retbench.retrievers.exact_search import search
from retbench.retrievers.inverted_index import InvertedIndex
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.score_fusion import fuse_rankings
from retbench.store.embedding_cache import open_store
from retbench.store.shard_store import ShardStore, VectorBlock

ROLES: tuple[Role, ...] = ("query", "document")
FUSED_DEPTH = 1000  # documents a side, as in PromptReps; the scores of a hybrid depend on it
BUDGET = {"cpu": 2048, "mps": 16384, "cuda": 65536}  # tokens a batch, and on a CPU a thread
FOREIGN_BUDGET = {"endpoint": 1 << 19, "vllm": 1 << 18}  # they make batches of their own; bytes, for a server of texts


def budget(device: str, threads: int) -> int:
    """The most tokens a batch may hold on such a device."""
    return BUDGET[device] * (threads if device == "cpu" else 1)


Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Dense:
    """One encoder over one collection. Only its workers load the model, and cached vectors need no workers."""

    model: str
    spec: EncoderSpec
    workers: Workers
    task: TaskCard
    collection: Collection
    meter: Meter
    shard_rows: int = SHARD_ROWS
    adaptor: Change | None = None
    near: AnnSettings | None = None  # how to search approximately; exactly without it
    told: dict[str, Any] = field(default_factory=dict)  # what an approximate search was measured to find

    def rank(self, k: int) -> Ranking:
        """The k best documents of every query."""
        for name, role in zip(("embed queries", "embed and search documents"), ROLES, strict=True):
            self.meter.carry(name, self._store(role).compute_total_cost().seconds / self.workers.count)
        with self.meter.phase("embed queries", "texts", self.workers.reach):
            queries = self.queries()
        with self.meter.phase("embed and search documents", "texts", self.workers.reach):
            if self.spec.method.kind != "dense":
                return self._with_terms(queries, self._blocks("document"), k)
            after = self.after()
            changed = (VectorBlock(block.rows, after(block.vectors)) for block in self._blocks("document"))
            if self.near is None:
                return search(after(queries), changed, k)
            ranking, told = approximate_search.search_approximately(
                self.near, after(queries), changed, k, len(self.collection.corpus)
            )
            self.told.update(search=told)
            return ranking

    def after(self) -> Change:
        """What is done to every stored vector before it is compared."""
        changed, width = self._changed(), self.spec.dimensions
        return changed if width is None else lambda vectors: shortened(changed(vectors), width)

    def _changed(self) -> Change:
        if self.spec.method.post == "none":
            return self.adaptor or (lambda vectors: vectors)
        post, last = fit_postprocessing(self.spec.method, self._blocks("document")), self.adaptor
        return (lambda vectors: last(post(vectors))) if last else post

    def queries(self) -> np.ndarray:
        """Every query's stored vector, computed where it is missing."""
        return self._matrix(list(self._blocks("query")))

    def every(self) -> np.ndarray:
        """Every document's stored vector, computed where it is missing."""
        return picked(self._blocks("document"), np.arange(len(self.collection.corpus)))

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Some documents' vectors: read where the whole corpus is stored, else these alone are embedded and stored."""
        if self._store("document").is_complete():
            return picked(self._blocks("document"), rows)
        job = replace(self._job("document"), texts=self.collection.corpus.take(rows))
        store = open_store(self.model, job.key(self.spec.describe_vectors("document")), self.spec.vector_dtype)
        store.record_use(f"{self.task.name} ({self.spec.method.name}, candidates)")
        return picked(embed(self.workers, job, store, self.meter.show.advance), np.arange(len(rows)))

    def _with_terms(self, queries: np.ndarray, blocks: Iterator[VectorBlock], k: int) -> Ranking:
        """By terms alone, or by terms and vectors; each side is cut as PromptReps cuts it before the two are joined."""
        index, asked = InvertedIndex(), split_rows(queries)

        def vectors() -> Iterator[VectorBlock]:
            for block in blocks:
                taken = split_rows(block.vectors)
                index.add_documents(block.rows, taken.terms, taken.weights)
                yield VectorBlock(block.rows, taken.dense)

        dense = search(asked.dense, vectors(), max(k, FUSED_DEPTH))
        sparse = index.search(asked.terms, asked.weights, max(k, FUSED_DEPTH))
        if self.spec.method.kind == "sparse":
            return sparse
        drop = self.task.same_id == "drop"
        dense, sparse = (side.filter_and_cut(self.collection, drop, FUSED_DEPTH) for side in (dense, sparse))
        return fuse_rankings(dense, sparse, k)

    def facts(self) -> dict[str, Any]:
        """By role: tokens, truncation and plan, as the store wrote them down; what it took over all tries."""
        stores = {role: self._store(role) for role in ROLES}
        roles: dict[str, Any] = {
            role: {**store.load_or_create_plan(dict), **asdict(store.compute_total_cost()), **store.read_manifest()}
            for role, store in stores.items()
        }
        return {**roles, **self.told}

    def _job(self, role: Role) -> Job:
        texts = self.collection.queries if role == "query" else self.collection.corpus
        return Job(
            texts,
            self.task.fields,
            role,
            FOREIGN_BUDGET.get(self.spec.engine.partition(":")[0], budget(*self.workers.device)),
            self.shard_rows,
        )

    def _store(self, role: Role) -> ShardStore:
        key = self._job(role).key(self.spec.describe_vectors(role))
        return open_store(self.model, key, self.spec.vector_dtype)

    def _blocks(self, role: Role) -> Iterator[VectorBlock]:
        job, store = self._job(role), self._store(role)
        store.record_use(f"{self.task.name} ({self.spec.method.name})")
        return embed(self.workers, job, store, self.meter.show.advance)

    def _matrix(self, blocks: list[VectorBlock]) -> np.ndarray:
        matrix = np.empty((len(self.collection.queries), blocks[0].vectors.shape[1]), dtype=np.float32)
        for block in blocks:
            matrix[block.rows] = block.vectors
        return matrix


def shortened(vectors: np.ndarray, width: int) -> np.ndarray:
    """The first numbers of each vector, at length one again: what Matryoshka training is for."""
    if width > vectors.shape[1]:
        raise UsageError(f"--set dimensions={width}: the vectors have {vectors.shape[1]}", "give that many or fewer")
    first = vectors[:, :width]
    return np.asarray(first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12))


def picked(blocks: Iterable[VectorBlock], rows: np.ndarray) -> np.ndarray:
    """The vectors of these rows, which are in rising order, out of a stream of blocks."""
    matrix = np.empty((len(rows), 0), dtype=np.float32)
    for block in blocks:
        if not matrix.shape[1]:
            matrix = np.empty((len(rows), block.vectors.shape[1]), dtype=np.float32)
        places = np.minimum(np.searchsorted(rows, block.rows), len(rows) - 1)
        wanted = rows[places] == block.rows
        matrix[places[wanted]] = block.vectors[wanted]
    return matrix
