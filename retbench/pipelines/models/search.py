"""Retrieval of one cell: by words through an index, or by vectors through the embedding cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from retbench.cards.ann_settings import AnnSettings, BinarySettings
from retbench.cards.model import LexicalSettings
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.errors import InapplicableError
from retbench.pipelines.models.model import ResolvedModel
from retbench.records.phase_timer import PhaseTimer
from retbench.retrievers.bm25 import BM25Index
from retbench.retrievers.candidate_ranking import rank_candidates
from retbench.retrievers.lucene_index import LuceneIndex
from retbench.retrievers.query_likelihood import DirichletIndex
from retbench.retrievers.random_ranking import rank_randomly
from retbench.retrievers.ranking import Ranking

if TYPE_CHECKING:
    from retbench.encoders.shard_tasks import ShardWorkers
    from retbench.retrievers.dense_retriever import DenseRetriever
    from retbench.retrievers.embedding_retriever import EmbeddingRetriever


RANKED_WITHOUT_INDEX = {"candidates": rank_candidates, "random": rank_randomly}


class Retriever(Protocol):
    """A collection in, a ranking out."""

    def rank(self, k: int) -> Ranking:
        """Return the k best documents of every query."""
        ...

    def collect_facts(self) -> dict[str, Any]:
        """Return facts about the texts of each role for the record; call it after `rank`."""
        ...


@dataclass(frozen=True)
class LexicalRetriever:
    """BM25, Dirichlet query likelihood, the given candidates or a random order of one collection."""

    settings: LexicalSettings
    task: TaskCard
    collection: Collection
    timer: PhaseTimer

    def rank(self, k: int) -> Ranking:
        """Index the documents and return the k best of every query; candidate lists and chance need no index."""
        if self.settings.variant in RANKED_WITHOUT_INDEX:
            return RANKED_WITHOUT_INDEX[self.settings.variant](self.collection, k)
        with self.timer.time_phase("index documents"):
            index = self._build_index()
        with self.timer.time_phase("search"):
            return index.search((row.text for row in self.collection.queries), k)

    def _build_index(self) -> BM25Index | LuceneIndex | DirichletIndex:
        texts = (join_fields(row, self.task.fields) for row in self.collection.corpus)
        if self.settings.variant == "anserini":
            return LuceneIndex(self.settings, texts, self.collection.corpus.read_ids().to_pylist())
        return (DirichletIndex if self.settings.variant == "dirichlet" else BM25Index)(self.settings, texts)

    def collect_facts(self) -> dict[str, Any]:
        """Return nothing: no tokens are counted."""
        return {}


def build_retriever(
    model: ResolvedModel, spec: EncoderSpec | None, task: TaskCard, collection: Collection,
    ann_settings: AnnSettings | None, timer: PhaseTimer,
) -> Retriever:  # fmt: skip
    """Build the retriever of a model; `spec` is None for a lexical model."""
    if model.lexical_settings:
        return LexicalRetriever(model.lexical_settings, task, collection, timer)
    if spec is None:
        raise TypeError(f"{model.card.name} needs the specification of its encoder")
    if ann_settings and spec.method.kind != "dense":
        raise InapplicableError(
            f"method {spec.method.name} has no dense vectors", "leave --set search out, or use a dense --method"
        )
    if isinstance(ann_settings, BinarySettings) and spec.method.similarity == "dot":
        raise InapplicableError(
            f"method {spec.method.name} compares by dot product, and --set search=binary keeps only directions",
            "use --set search=int8, which keeps the lengths too",
        )
    if spec.method.kind == "dense":
        return build_dense_retriever(model, spec, task, collection, timer, ann_settings)
    return _choose_retriever(spec)(model.embeddings_owner, spec, _build_workers(model, spec), task, collection, timer)


def _choose_retriever(spec: EncoderSpec) -> "type[EmbeddingRetriever]":
    """Return the retriever of what a method makes of a text besides one dense vector."""
    from retbench.retrievers import multi_vector_retriever, term_retriever  # torch; retrieval by words needs none

    if spec.method.vector_kind == "multi-vector":
        return multi_vector_retriever.MultiVectorRetriever
    return term_retriever.TermRetriever if spec.method.learned_sparse else term_retriever.PromptTermRetriever


def _build_workers(model: ResolvedModel, spec: EncoderSpec) -> "ShardWorkers":
    from retbench.encoders.shard_tasks import InProcessWorker

    if model.create_workers:
        return model.create_workers(spec)
    if model.engine.name == "endpoint":
        from retbench.pipelines.models.endpoint_workers import EndpointWorkers

        return EndpointWorkers(lambda: model.load_encoder(spec), shards_in_flight=model.engine.max_in_flight)
    return InProcessWorker(lambda: model.load_encoder(spec))


def build_dense_retriever(
    model: ResolvedModel, spec: EncoderSpec, task: TaskCard, collection: Collection, timer: PhaseTimer,
    ann_settings: AnnSettings | None = None,
) -> "DenseRetriever":  # fmt: skip
    """Build a dense retriever. A model with an adaptor uses the cached vectors of its parent and transforms them."""
    from retbench.retrievers.dense_retriever import DenseRetriever

    adaptor = model.load_adaptor(spec.method.similarity) if spec.adaptor else None
    workers = _build_workers(model, spec)
    return DenseRetriever(
        model.embeddings_owner, spec, workers, task, collection, timer, adaptor=adaptor, ann_settings=ann_settings
    )
