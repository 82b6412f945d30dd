"""What all rerankers share: their specification before models are loaded, and the resolver of their models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from retbench.cards import catalog
from retbench.cards.reranker_settings import RerankerRequest
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates, Reranker


@dataclass
class ModelResolver:
    """Finds the models of rerankers by name, each once."""

    log_status: Callable[[str], None]
    attach_workers: Callable[[ResolvedModel], ResolvedModel] = lambda model: model  # by default none: no worker pool
    resolved: dict[str, ResolvedModel] = field(default_factory=dict)

    def resolve(self, name: str) -> ResolvedModel:
        """Return the model of this name, or raise if there is none."""
        if name not in self.resolved:
            self.resolved[name] = self.attach_workers(
                ResolvedModel.resolve(catalog.find_model_card(name), None, self.log_status)
            )
        return self.resolved[name]

    def resolve_or_reuse(
        self, name: str | None, first_stage: SavedRun, first_stage_model: ResolvedModel | None
    ) -> ResolvedModel:
        """Return the named model, by default the first stage's; reuse `first_stage_model` if it has that name."""
        record_name = first_stage.record.model
        name = name or record_name
        if first_stage_model and name in (first_stage_model.card.name, record_name):
            return first_stage_model
        return self.resolve(name)


class RerankerSpec(Protocol):
    """A reranker before its models are loaded."""

    @property
    def request(self) -> RerankerRequest:
        """The request with models by their card names, because a record must not contain local paths."""
        ...

    def list_baselines(self) -> Sequence["RerankerSpec"]:
        """Return rerankers to run before this one, for comparison. The first stage itself is always one baseline."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the order, besides the request."""
        ...

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the cards of models that the first stage does not use."""
        ...

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> Reranker:
        """Load the models and return the reranker."""
        ...

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the first prompt, if the reranker has prompts, without loading a model."""
        ...
