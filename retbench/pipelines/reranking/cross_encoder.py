"""Reranking by a cross-encoder (`--rerank cross:model=NAME`): a classifier that reads query and document together."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.published_cross_encoder import read_pair_limit, require_cross_encoder
from retbench.cards.reranker_settings import CrossEncoderSettings, RerankerRequest, build_request
from retbench.corpora.texts import join_fields
from retbench.encoders.cross_encoder import PairTokenizer, load_cross_encoder, load_pair_tokenizer
from retbench.engines import memory, model_folders, remote_code, weights
from retbench.engines.device import get_device
from retbench.errors import UsageError
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.runs.build_record import make_portable_card
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates
from retbench.rerankers.cross_encoder import CrossEncoderReranker
from retbench.retrievers.embedding_retriever import compute_token_budget


@dataclass(frozen=True)
class CrossEncoderSpec:
    """A cross-encoder: its weights, and the most tokens of a pair."""

    settings: CrossEncoderSettings
    card: ModelCard
    weights: weights.LocalWeights
    max_length: int | None

    @property
    def request(self) -> RerankerRequest:
        """The request with the model's name."""
        return build_request("cross", replace(self.settings, model=self.card.name))

    def list_baselines(self) -> list[Any]:
        """Return none: the first stage is the only baseline."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return the weights, the most tokens of a pair, the dtype, and the remote code if it runs."""
        code = remote_code.compute_code_digest(self.weights.folder)
        return {
            "weights": self.weights.fingerprint,
            "max_length": self.max_length,
            "dtype": self.settings.dtype,
            **({"code": code} if code else {}),
        }

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the model's card."""
        return [make_portable_card(self.card)]

    @cached_property
    def _pair_tokenizer(self) -> PairTokenizer:
        return load_pair_tokenizer(self.weights.folder, self.max_length)

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> CrossEncoderReranker:
        """Load the model."""
        device = get_device()
        with timer.time_phase("load the cross-encoder"):
            cross_encoder = load_cross_encoder(self.weights.folder, self._pair_tokenizer, self.settings.dtype, device)
        corpus, fields = first_stage.collection.corpus, first_stage.card.fields
        return CrossEncoderReranker(
            cross_encoder, lambda row: join_fields(corpus[row], fields), self.settings.depth,
            compute_token_budget(device.type, memory.get_thread_count()),
        )  # fmt: skip

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the first pair as the model reads it."""
        document = first_stage.collection.corpus[int(candidates.rows[0])]
        return self._pair_tokenizer.show_pair(candidates.query, join_fields(document, first_stage.card.fields))


def build_cross_encoder_spec(settings: CrossEncoderSettings, resolver: ModelResolver) -> CrossEncoderSpec:
    """Build the specification. A hub repository without a card is taken for the cross-encoder that the user names."""
    if settings.model is None:
        raise UsageError(
            "the reranker cross has no model", "name a cross-encoder: --rerank cross:model=NAME (retbench list models)"
        )
    card = catalog.find_model_card(settings.model)
    if card.kind == "lexical":
        raise UsageError(f"{card.name} is a lexical model, not a cross-encoder", "name one: --rerank cross:model=NAME")
    card = replace(card, kind="cross-encoder")
    local = weights.obtain_weights(card, None, resolver.log_status)
    require_cross_encoder(local.folder)
    window = model_folders.read_context_window(local.folder)
    limit = settings.max_length or card.max_length or read_pair_limit(local.folder, window)
    if limit and window and limit > window:
        raise UsageError(
            f"max_length={limit}: the context window of {card.name} has {window} tokens", f"give {window} or less"
        )
    return CrossEncoderSpec(settings, card, local, limit)
