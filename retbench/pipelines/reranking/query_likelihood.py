"""Reranking by a language model's query likelihood, log P(query | document), through the bottleneck of llm-ql stage 1.

Template, lengths and attention are those of the model's training. A language model without this training uses those of
the recipe `llm-ql`: its zero-shot baseline.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.cards.recipe import QueryLikelihoodTraining
from retbench.cards.recipe_keys import translate_recipe
from retbench.cards.reranker_settings import QueryLikelihoodSettings, RerankerRequest, build_request
from retbench.corpora.texts import join_fields
from retbench.engines.device import get_device
from retbench.engines.fingerprints import read_json_object
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import InapplicableError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.runs.build_record import make_portable_card
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.phase_timer import PhaseTimer
from retbench.rerankers.candidates import Candidates
from retbench.retrievers.embedding_retriever import TOKEN_BUDGETS
from retbench.system import toml_parser
from retbench.training import lora
from retbench.training.query_likelihood import QueryLikelihoodModel

RECIPE = "llm-ql"


@dataclass(frozen=True)
class QueryLikelihoodSpec:
    """Query likelihood: a language model, and the template, lengths and attention it was trained with."""

    settings: QueryLikelihoodSettings
    model: ResolvedModel
    training_settings: QueryLikelihoodTraining

    @property
    def request(self) -> RerankerRequest:
        """The request with the model's name."""
        return build_request("likelihood", replace(self.settings, model=self.model.card.name))

    def list_baselines(self) -> list[Any]:
        """Return none: the first stage is the only baseline."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return the weights, the document template, the attention and the lengths."""
        settings = self.training_settings
        cut = {"cut": settings.cut} if settings.cut != "text" else {}  # absent in records from before the field
        return {
            "weights": self.model.weights.fingerprint,
            "dtype": self.settings.dtype,
            "document": settings.document,
            **cut,
            "attention_stop": settings.attention_stop,
            "lengths": asdict(settings.lengths),
        }

    def list_model_cards(self) -> list[dict[str, Any]]:
        """Return the model's card."""
        return [make_portable_card(self.model.card)]

    def load(self, first_stage: SavedRun, timer: PhaseTimer) -> "QueryLikelihoodReranker":
        """Load the language model with its head."""
        with timer.time_phase("load the language model"):
            recipe = catalog.find_recipe(RECIPE)
            folder = self.model.weights.folder
            language_model = lora.load_model(folder, recipe, head=True).to(get_device()).eval()
            scorer = QueryLikelihoodModel(
                language_model, load_tokenizer(folder), self.training_settings, self.settings.dtype, get_device()
            )
        corpus, fields = first_stage.collection.corpus, first_stage.card.fields
        return QueryLikelihoodReranker(scorer, lambda row: join_fields(corpus[row], fields), self.settings.depth)

    def preview(self, first_stage: SavedRun, candidates: Candidates) -> dict[str, Any]:
        """Return the template before the bottleneck; the query follows it."""
        return {"template": self.training_settings.document}


@dataclass(frozen=True)
class QueryLikelihoodReranker:
    """Sorts candidates by the likelihood of the query after the document."""

    scorer: QueryLikelihoodModel
    load_text: Callable[[int], str]
    depth: int

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Sort by descending likelihood; ties keep the first stage's order."""
        documents = [self.load_text(int(row)) for row in candidates.rows]
        budget = TOKEN_BUDGETS[get_device().type] // 2  # the logits need memory too
        likelihoods = self.scorer.compute_log_likelihoods(documents, [candidates.query] * len(documents), budget)
        order = np.argsort(-likelihoods, kind="stable")
        return order, likelihoods[order]

    def collect_statistics(self) -> dict[str, Any]:
        """Return nothing: the lengths are in the settings."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Return one input sequence as the model reads it."""
        row = self.scorer.tokenize_pairs(["DOCUMENT"], ["QUERY"])[0]
        return {"read": self.scorer.tokenizer.decode(row.ids.tolist()), "bottleneck": row.bottleneck}


def build_query_likelihood_spec(
    settings: QueryLikelihoodSettings,
    first_stage: SavedRun,
    first_stage_model: ResolvedModel | None,
    resolver: ModelResolver,
) -> QueryLikelihoodSpec:
    """Build the specification; without `model`, with the first stage's model."""
    model = resolver.resolve_or_reuse(settings.model, first_stage, first_stage_model)
    if model.lexical_settings:
        raise UsageError(
            f"{model.card.name} is a lexical model and cannot score query likelihood",
            "name a language model: likelihood:model=NAME",
        )
    architectures = read_json_object(model.weights.folder / "config.json").get("architectures") or [""]
    if not architectures[0].endswith("ForCausalLM"):
        raise InapplicableError(
            f"the weights of {model.card.name} have no language-model head",
            "use the language model itself; for a model trained with llm-ql, use its folder stage-1",
        )
    return QueryLikelihoodSpec(settings, model, _load_training_settings(model))


def _load_training_settings(model: ResolvedModel) -> QueryLikelihoodTraining:
    """Return the settings stored in the model's card; without training by llm-ql, those of the recipe."""
    training = model.card.training
    stored = translate_recipe(training.recipe).get("query_likelihood") if training else None
    default = catalog.find_recipe(RECIPE).query_likelihood
    if stored is None and default is not None:
        return default
    settings: QueryLikelihoodTraining = toml_parser.convert_value(
        QueryLikelihoodTraining, stored, toml_parser.CardLocation(Path(catalog.CARD_FILE), "")
    )
    return settings
