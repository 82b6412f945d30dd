"""Reranking by query likelihood: log P(query | document) through the bottleneck, by a model that llm-ql's stage 1 made.

The template, the lengths and the attention are those of the model's own training; a language model that was never
trained so is asked with the recipe's own, which is its zero-shot baseline.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog, toml_parser
from retbench.cards.recipe import Likelihood
from retbench.cards.reranker_settings import QueryLikelihood, Wanted, of
from retbench.corpora.texts import joined
from retbench.engines import backbone
from retbench.engines.device import device
from retbench.engines.fingerprints import read_json
from retbench.errors import InapplicableError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.runs.saved_run import First
from retbench.records.phase_timer import Meter
from retbench.rerankers.candidates import Pool
from retbench.retrievers.dense_retriever import BUDGET
from retbench.training import lora
from retbench.training.query_likelihood import Speaker

RECIPE = "llm-ql"


@dataclass(frozen=True)
class Questioner:
    """The judge: a model, and how it was taught to ask."""

    settings: QueryLikelihood
    candidate: ResolvedModel
    taught: Likelihood

    @property
    def wanted(self) -> Wanted:
        """With the model's name."""
        return of("likelihood", QueryLikelihood(self.candidate.card.name, self.settings.depth))

    def baselines(self) -> list[Any]:
        """The first stage itself is what it must beat."""
        return []

    def describe(self) -> dict[str, Any]:
        """The weights, and the words around the document."""
        told = asdict(self.taught)
        asked = {key: told[key] for key in ("document", "attention_stop", "lengths")}
        return {"weights": self.candidate.weights.fingerprint, "dtype": "float32", **asked}

    def cards(self) -> list[dict[str, Any]]:
        """The model's card, without its place."""
        card = asdict(self.candidate.card)
        if card["weights"] and card["weights"]["path"]:
            card["weights"]["path"] = Path(card["weights"]["path"]).name
        return [card]

    def made(self, first: First, meter: Meter) -> "Asking":
        """Load the whole language model."""
        with meter.phase("load the language model"):
            recipe = catalog.recipe(RECIPE)
            folder = self.candidate.weights.folder
            model = lora.load(folder, recipe, head=True).to(device()).eval()
            speaker = Speaker(model, backbone.tokenizer(folder), self.taught, "float32", device())
        corpus, fields = first.collection.corpus, first.card.fields
        return Asking(speaker, lambda row: joined(corpus[row], fields), self.settings.depth)

    def preview(self, first: First, pool: Pool) -> dict[str, Any]:
        """What stands before the bottleneck; the query follows it."""
        return {"template": self.taught.document}


@dataclass(frozen=True)
class Asking:
    """The reranker: every candidate is asked how likely the query is."""

    speaker: Speaker
    text: Callable[[int], str]
    depth: int

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """By falling likelihood; equal ones keep their order."""
        documents = [self.text(int(row)) for row in pool.rows]
        found = self.speaker.likelihoods(documents, [pool.query] * len(documents), BUDGET[device().type])
        order = np.argsort(-found, kind="stable")
        return order, found[order]

    def facts(self) -> dict[str, Any]:
        """Nothing is cut silently: the lengths are in the settings."""
        return {}

    def first(self) -> dict[str, Any]:
        """One row as it is read."""
        line = self.speaker.lines(["DOCUMENT"], ["QUERY"])[0]
        return {"read": self.speaker.tokenizer.decode(line.ids.tolist()), "bottleneck": line.bottleneck}


def questioner(settings: QueryLikelihood, first: First, find: Callable[[str], ResolvedModel]) -> Questioner:
    """The judge by its model's name; without one, the run's own model."""
    candidate = find(settings.model or first.record.model)
    if candidate.lexical:
        raise UsageError(f"{candidate.card.name} says nothing", "name a language model: likelihood:model=NAME")
    kinds = read_json(candidate.weights.folder / "config.json").get("architectures") or [""]
    if not kinds[0].endswith("ForCausalLM"):
        raise InapplicableError(
            f"the weights of {candidate.card.name} have no language-model head",
            "use the whole language model; of one that llm-ql trained, its folder stage-1",
        )
    return Questioner(settings, candidate, _taught(candidate))


def _taught(candidate: ResolvedModel) -> Likelihood:
    training = candidate.card.training
    told = training.recipe.get("likelihood") if training else None
    own = catalog.recipe(RECIPE).likelihood
    if told is None and own is not None:
        return own
    found: Likelihood = toml_parser.convert(Likelihood, told, toml_parser.Place(Path(catalog.CARD), ""))
    return found
