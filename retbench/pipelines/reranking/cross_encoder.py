"""Reranking by a cross-encoder (`--rerank cross:model=NAME`): a model that reads query and document together."""

from dataclasses import dataclass, replace
from typing import Any

from retbench.cards.reranker_settings import CrossEncoderSettings, RerankerRequest, build_request
from retbench.corpora.texts import join_fields
from retbench.encoders.pair_tokenizers import show_pair
from retbench.pipelines.models.cross_encoder import ResolvedCrossEncoder, resolve_cross_encoder
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.runs.build_record import make_portable_card
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates
from retbench.rerankers.cross_encoder import CrossEncoderReranker


@dataclass(frozen=True)
class CrossEncoderSpec:
    """A cross-encoder before its weights are loaded."""

    resolved: ResolvedCrossEncoder

    @property
    def request(self) -> RerankerRequest:
        """The request with the model's name."""
        return build_request("cross", replace(self.resolved.settings, model=self.resolved.card.name))

    def list_baselines(self) -> list[Any]:
        """Return none: the first stage is the only baseline."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return the weights, the most tokens of a pair, the dtype, the prompt, and the remote code if it runs."""
        return self.resolved.describe()

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the model's card."""
        return [make_portable_card(self.resolved.card)]

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> CrossEncoderReranker:
        """Load the model."""
        with timer.time_phase("load the cross-encoder"):
            cross_encoder = self.resolved.load()
        corpus, fields = first_stage.collection.corpus, first_stage.card.fields
        return CrossEncoderReranker(
            cross_encoder, lambda row: join_fields(corpus[row], fields), self.resolved.settings.depth,
            self.resolved.compute_token_budget(),
        )  # fmt: skip

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the first pair as the model reads it."""
        document = first_stage.collection.corpus[int(candidates.rows[0])]
        return show_pair(self.resolved.pair_tokenizer, candidates.query, join_fields(document, first_stage.card.fields))


def build_cross_encoder_spec(
    settings: CrossEncoderSettings, first_stage: SavedRun, resolver: ModelResolver
) -> CrossEncoderSpec:
    """Build the specification; a prompt with a place for an instruction has the task's, if the user gives none."""
    return CrossEncoderSpec(resolve_cross_encoder(settings, first_stage.card.instruction, resolver.log_status))
