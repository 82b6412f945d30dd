"""What all retrieval by a model shares: queries and documents are embedded into the cache and ranked.

Each kind of vector has its retriever: `dense_retriever.py`, `multi_vector_retriever.py` and `term_retriever.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from retbench.cards.method import ROLES, Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.encoders.batch_plan import SHARD_ROWS
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.shard_tasks import ShardWorkers
from retbench.records.phase_timer import PhaseTimer
from retbench.retrievers.ranking import Ranking
from retbench.store.embedding_cache import open_store
from retbench.store.shard_store import ShardStore, VectorBlock

TOKEN_BUDGETS = {"cpu": 4096, "mps": 16384, "cuda": 65536}  # tokens per batch; on a CPU, per thread
# these engines batch themselves; for an endpoint, which receives texts, in bytes
EXTERNAL_TOKEN_BUDGETS = {"endpoint": 1 << 16, "vllm": 1 << 18}


def compute_token_budget(device: str, threads: int) -> int:
    """Return the largest number of tokens in a batch on this type of device."""
    return TOKEN_BUDGETS[device] * (threads if device == "cpu" else 1)


@dataclass(frozen=True)
class EmbeddingRetriever(ABC):
    """Ranks one collection with one encoder. Only the workers load the model; cached vectors need no workers."""

    model: str
    spec: EncoderSpec
    workers: ShardWorkers
    task: TaskCard
    collection: Collection
    timer: PhaseTimer
    shard_rows: int = SHARD_ROWS
    search_facts: dict[str, Any] = field(default_factory=dict, kw_only=True)  # what the search measured, for the record

    def rank(self, k: int) -> Ranking:
        """Return the k best documents of every query."""
        for name, role in zip(("embed queries", "embed and search documents"), ROLES, strict=True):
            spent = self._open_store(role).compute_total_cost().seconds
            self.timer.add_earlier_seconds(name, spent / self.workers.count)
        with self.timer.time_phase("embed queries", "texts", self.workers.peak_throughput):
            queries = list(self._embed("query"))
        with self.timer.time_phase("embed and search documents", "texts", self.workers.peak_throughput):
            return self._search(queries, k)

    @abstractmethod
    def _search(self, queries: list[VectorBlock], k: int) -> Ranking:
        """Embed the documents and rank them for the embedded queries."""

    def collect_facts(self) -> dict[str, Any]:
        """Return by role: tokens, truncation and plan as stored, and the total cost over all runs."""
        stores = {role: self._open_store(role) for role in ROLES}
        roles: dict[str, Any] = {
            role: {**store.load_or_create_plan(dict), **asdict(store.compute_total_cost()), **store.read_manifest()}
            for role, store in stores.items()
        }
        return {**roles, **self.search_facts}

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
