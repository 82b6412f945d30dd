"""Reranking by embeddings (`--rerank vectors`, `rocchio`, `e2rank`): an encoder and the candidates' stored vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.cards.reranker_settings import (
    E2RankSettings,
    RerankerRequest,
    RocchioSettings,
    VectorsSettings,
    build_request,
)
from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError, InapplicableError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.models.search import build_dense_retriever
from retbench.pipelines.reranking.base import ModelResolver, RerankerSpec
from retbench.pipelines.runs.build_record import make_portable_card
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates, Reranker
from retbench.rerankers.embedding_rerankers import (
    EmbeddingReranker,
    QueryEmbedder,
    RocchioEmbedder,
    StoredQueryEmbedder,
    VectorLookup,
)
from retbench.rerankers.listwise_embedding import ListwisePromptBuilder, ListwisePromptEmbedder
from retbench.retrievers.dense_retriever import DenseRetriever


@dataclass(frozen=True)
class EmbeddingRerankerSpec:
    """Vectors, Rocchio or E2Rank with its encoder."""

    name: str
    settings: VectorsSettings
    model: ResolvedModel
    encoder_spec: EncoderSpec
    has_own_encoder: bool  # False if it uses the first stage's encoder

    @property
    def request(self) -> RerankerRequest:
        """The request, with model and method if the encoder is not the first stage's."""
        model, method = (self.model.card.name, self.encoder_spec.method.name) if self.has_own_encoder else (None, None)
        return build_request(self.name, replace(self.settings, model=model, method=method))

    def list_baselines(self) -> list[RerankerSpec]:
        """Return `vectors` with the same encoder, unless the first stage already ranks by this encoder."""
        if not self.has_own_encoder or self.name == "vectors":
            return []
        settings = self.settings
        plain = VectorsSettings(depth=settings.depth, max_length=settings.max_length, dtype=settings.dtype)
        return [replace(self, name="vectors", settings=plain)]

    def describe(self) -> dict[str, Any]:
        """Return the encoder's settings if it is not the first stage's."""
        return {"encoder": self.encoder_spec.describe()} if self.has_own_encoder else {}

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the model's card if the encoder is not the first stage's."""
        return [make_portable_card(self.model.card)] if self.has_own_encoder else []

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> Reranker:
        """Read the candidates' vectors; load the model only if they are missing or a prompt must be embedded."""
        retriever = build_dense_retriever(
            self.model, self.encoder_spec, first_stage.card, first_stage.collection, timer
        )
        rows = np.unique(np.concatenate([ranked[: self.settings.depth] for ranked in first_stage.ranking.rows]))
        with timer.time_phase("read vectors of candidates", "texts"):
            postprocess = retriever.build_transform()
            vectors = postprocess(retriever.embed_documents(rows))

        def look_up_vectors(document_rows: np.ndarray) -> np.ndarray:
            return np.asarray(vectors[np.searchsorted(rows, document_rows)])

        query_embedder = self._build_query_embedder(first_stage, retriever, look_up_vectors, postprocess)
        if isinstance(self.settings, E2RankSettings):
            return EmbeddingReranker(
                query_embedder, look_up_vectors, self.settings.depth, self.settings.window, self.settings.step
            )
        return EmbeddingReranker(query_embedder, look_up_vectors, self.settings.depth)

    def _build_query_embedder(
        self, first_stage: SavedRun, retriever: DenseRetriever, look_up_vectors: VectorLookup,
        postprocess: Callable[[np.ndarray], np.ndarray],
    ) -> QueryEmbedder:  # fmt: skip
        settings = self.settings
        if isinstance(settings, E2RankSettings):
            prompt_builder = self._build_prompt_builder(settings, first_stage)
            return ListwisePromptEmbedder(self.model.load_dense_encoder(self.encoder_spec), prompt_builder, postprocess)
        with retriever.timer.time_phase("read vectors of queries", "texts"):
            query_vectors = postprocess(retriever.embed_queries())
        if isinstance(settings, RocchioSettings):
            return RocchioEmbedder(query_vectors, look_up_vectors, settings, self.encoder_spec.method.similarity)
        return StoredQueryEmbedder(query_vectors)

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the first listwise prompt; nothing for vectors and Rocchio, which have no prompt."""
        if not isinstance(self.settings, E2RankSettings):
            return {}
        prompt_builder = self._build_prompt_builder(self.settings, first_stage)
        return prompt_builder.show_prompt(prompt_builder.build(candidates))

    def _build_prompt_builder(self, settings: E2RankSettings, first_stage: SavedRun) -> ListwisePromptBuilder:
        corpus, fields = first_stage.collection.corpus, first_stage.card.fields
        return ListwisePromptBuilder(
            self._build_listwise_tokenizer(settings), settings, lambda row: join_fields(corpus[row], fields)
        )

    def _build_listwise_tokenizer(self, settings: E2RankSettings) -> ListwisePromptTokenizer:
        card = self.model.card
        if self.model.local_weights is None:
            raise InapplicableError(
                f"{card.name} is behind an endpoint, so its prompts cannot be tokenised here", "use rocchio"
            )
        prompt_tokenizer = self.model.build_text_tokenizer(self.encoder_spec)
        has_chat_template = bool(prompt_tokenizer.tokenizer.chat_template)
        if settings.form == "chat" and not has_chat_template:
            raise InapplicableError(f"{card.name} has no chat template", "use form=plain, or leave form out")
        use_chat = has_chat_template and settings.form != "plain"
        config = read_json_object(self.model.weights.folder / "config.json")
        context_length = card.context_length or config.get("max_position_embeddings") or 512
        limit = context_length if use_chat else min(card.max_length or context_length, context_length)
        return ListwisePromptTokenizer(prompt_tokenizer, use_chat, min(settings.length or limit, context_length))


def build_embedding_spec(
    request: RerankerRequest,
    settings: VectorsSettings,
    first_stage: SavedRun,
    first_stage_model: ResolvedModel | None,
    resolver: ModelResolver,
) -> EmbeddingRerankerSpec:
    """Build the specification with the named encoder, by default the first stage's."""
    first_stage_spec, name = first_stage.spec, settings.model or first_stage.record.model
    if settings.model is None and first_stage_spec is None:
        raise UsageError(f"the run of {name} has no vectors to rerank by", f"name a model: {request.name}:model=NAME")
    model = resolver.resolve_or_reuse(settings.model, first_stage, first_stage_model)
    if model.lexical_settings:
        raise UsageError(f"{name} is a lexical model without vectors", "name a backbone (retbench list models)")
    (method, *_) = model.resolve_methods([catalog.find_method(settings.method)] if settings.method else [])
    overrides = Overrides(max_length=settings.max_length, dtype=settings.dtype)
    resolved_spec = model.build_encoder_spec(method, first_stage.card, overrides)
    same_weights = first_stage_spec is not None and _get_weights(first_stage_spec) == _get_weights(resolved_spec)
    if not same_weights and settings.model is None:
        raise DataError(
            f"the weights of {name} on this machine are not the weights of the run",
            "restore the weights that the run used, or run the first stage again",
        )
    same_method = settings.method is None or method == first_stage.method
    same_encoder = same_weights and same_method and overrides == Overrides()
    encoder_spec = first_stage_spec if same_encoder and first_stage_spec else resolved_spec
    if encoder_spec.method.kind != "dense":
        raise InapplicableError(f"method {encoder_spec.method.name} has no dense vectors", "use a dense method")
    return EmbeddingRerankerSpec(request.name, settings, model, encoder_spec, has_own_encoder=not same_encoder)


def _get_weights(spec: EncoderSpec) -> tuple[str, str | None]:
    return spec.weights, spec.adaptor
