"""Reranking by lexical query likelihood (`--rerank ql`)."""

from dataclasses import dataclass
from typing import Any

from retbench.cards.model import LexicalSettings
from retbench.cards.reranker_settings import (
    LexicalQLSettings,
    RerankerRequest,
    build_request,
)
from retbench.corpora.texts import join_fields
from retbench.pipelines.reranking.base import RerankerSpec
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates, Reranker
from retbench.rerankers.lexical_ql import LexicalQLReranker
from retbench.retrievers.query_likelihood import DirichletIndex


@dataclass(frozen=True)
class LexicalQLSpec:
    """Lexical query likelihood: it indexes the corpus and needs no model."""

    settings: LexicalQLSettings

    @property
    def request(self) -> RerankerRequest:
        """The request as typed."""
        return build_request("ql", self.settings)

    def list_baselines(self) -> list[RerankerSpec]:
        """Return none: the first stage is the only baseline."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return how texts are split into words."""
        return {"words": self._lexical.describe()}

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return none: there is no model."""
        return []

    @property
    def _lexical(self) -> LexicalSettings:
        return LexicalSettings(variant="dirichlet", mu=self.settings.mu)

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> Reranker:
        """Index the whole corpus, because the smoothing needs its word counts."""
        with timer.time_phase("index documents for ql"):
            index = DirichletIndex(
                self._lexical, (join_fields(row, first_stage.card.fields) for row in first_stage.collection.corpus)
            )
        return LexicalQLReranker(index, self.settings.depth)

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return nothing: there is no prompt."""
        return {}
