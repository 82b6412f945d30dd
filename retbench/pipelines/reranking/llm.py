"""Reranking by a language model (`--rerank listwise`, `--rerank pointwise`), and the price of its tokens."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retbench.cards.engine import Engine
from retbench.cards.reranker_settings import ListwiseSettings, PointwiseSettings, RerankerRequest, build_request
from retbench.corpora.texts import join_fields
from retbench.engines.chat_client import ChatClient
from retbench.engines.device import choose_dtype, get_device
from retbench.engines.fingerprints import read_json_object
from retbench.engines.generator import Generator, TransformersGenerator
from retbench.engines.http_client import EndpointServer, get_endpoint_address
from retbench.engines.vllm_generator import VllmGenerator
from retbench.errors import UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.runs.build_record import make_portable_card
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.answer_cache import CachedGenerator
from retbench.rerankers.candidates import Candidates, Reranker
from retbench.rerankers.llm_prompts import PromptBuilder
from retbench.rerankers.llm_rerankers import ListwiseLLMReranker, PointwiseLLMReranker
from retbench.store.digest import compute_digest
from retbench.system.user_config import load_user_config


@dataclass(frozen=True)
class LLMRerankerSpec:
    """Listwise or pointwise reranking by a language model."""

    name: str
    settings: PointwiseSettings
    generator: Generator
    card: dict[str, Any]

    @property
    def request(self) -> RerankerRequest:
        """The request with the model's name."""
        return build_request(self.name, replace(self.settings, model=self.generator.name))

    def list_baselines(self) -> list["LLMRerankerSpec"]:
        """Return none: the first stage is the only baseline."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return the model's weights, dtype and engine."""
        return self.generator.describe()

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the model's card; none for a model behind an endpoint."""
        return [self.card] if self.card else []

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> Reranker:
        """Return the reranker. It loads the model at the first prompt without a cached answer."""
        cached_generator = CachedGenerator(self.generator)
        return CostTrackedReranker(self._build_reranker(cached_generator, first_stage), cached_generator)

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the first prompt without running the model."""
        return {"prompt": self._build_reranker(self.generator, first_stage).build_first_prompt(candidates)}

    def _build_reranker(
        self, generator: Generator, first_stage: SavedRun
    ) -> ListwiseLLMReranker | PointwiseLLMReranker:
        corpus, fields = first_stage.collection.corpus, first_stage.card.fields
        prompt_builder = PromptBuilder(
            generator, self.settings, lambda row: join_fields(corpus[row], fields), name_scores(first_stage)
        )
        if isinstance(self.settings, ListwiseSettings):
            return ListwiseLLMReranker(prompt_builder, self.settings)
        return PointwiseLLMReranker(prompt_builder)


@dataclass(frozen=True)
class CostTrackedReranker:
    """A language-model reranker that reports its token usage and, if rates are configured, the price."""

    inner: ListwiseLLMReranker | PointwiseLLMReranker
    cached_generator: CachedGenerator

    @property
    def depth(self) -> int:
        """The number of candidates per query."""
        return self.inner.depth

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Rerank with the inner reranker."""
        return self.inner.rerank(candidates)

    def collect_statistics(self) -> dict[str, Any]:
        """Return usage and price. Cached answers are included, because the ranking needed them too."""
        statistics = {**self.inner.collect_statistics(), "found_again": self.cached_generator.cache_hits}
        config = load_user_config()
        rate = (config.rates or {}).get(self.cached_generator.name)
        if rate:
            price = (statistics["read"] * rate.read + statistics["written"] * rate.written) / 1e6
            statistics |= {"price": round(price, 6), "currency": config.currency}
        return statistics

    def sample(self) -> dict[str, Any]:
        """Return the first prompt and its answer."""
        return self.inner.sample()


def name_scores(first_stage: SavedRun) -> str:
    """Return the name of the first stage's scores in a prompt."""
    settings = first_stage.record.settings
    return "BM25 score" if settings["retriever"] == "bm25" and not settings["rerankers"] else "search score"


def build_llm_spec(
    request: RerankerRequest,
    first_stage: SavedRun,
    first_stage_model: ResolvedModel | None,
    resolver: ModelResolver,
) -> LLMRerankerSpec:
    """Build the specification. Behind an endpoint, `model` is the name of a model on the server."""
    settings = request.settings
    if not isinstance(settings, PointwiseSettings):
        raise TypeError(f"{request.name} does not use a language model")
    if settings.engine == "endpoint":
        if settings.model is None:
            raise UsageError(
                "engine=endpoint needs the name of a model on the server",
                f"give it: {request.name}:engine=endpoint,model=NAME",
            )
        chat = ChatClient(
            settings.model, EndpointServer(Engine("endpoint")), compute_digest(get_endpoint_address())[:12]
        )
        return LLMRerankerSpec(request.name, settings, chat, {})
    if settings.model is None and first_stage.spec is None:
        raise UsageError(
            f"{first_stage.record.model} is not a language model and cannot generate an answer",
            f"name a language model: {request.name}:model=NAME",
        )
    model = resolver.resolve_or_reuse(settings.model, first_stage, first_stage_model)
    if model.lexical_settings:
        raise UsageError(
            f"{settings.model or first_stage.record.model} is a lexical model and cannot generate an answer",
            "name a language model (retbench list models)",
        )
    generator = _build_generator(model, settings)
    return LLMRerankerSpec(request.name, settings, generator, make_portable_card(model.card))


def _build_generator(model: ResolvedModel, settings: PointwiseSettings) -> Generator:
    card, weights = model.card, model.weights
    config = read_json_object(weights.folder / "config.json")
    context_length = card.context_length or config.get("max_position_embeddings") or 2048
    dtype = choose_dtype(card, lambda: True, settings.dtype).weights_dtype
    arguments = (card.name, weights.folder, weights.fingerprint, dtype, context_length)
    reasons = card.specialisation == "reasoning"
    if settings.engine == "vllm":
        return VllmGenerator(*arguments, is_reasoning_model=reasons)
    return TransformersGenerator(*arguments, get_device(), is_reasoning_model=reasons)
