"""Judges: from a reranker as it was typed to the reranker at work, with the model it needs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retbench.cards import catalog
from retbench.cards.model import Lexical
from retbench.cards.reranker_settings import E2Rank, QueryLikelihood, Rocchio, Vectors, Wanted, WordLikelihood, of
from retbench.corpora.texts import joined
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.listwise_prompt import Sheet
from retbench.engines.fingerprints import read_json
from retbench.errors import DataError, InapplicableError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.search import dense_of
from retbench.pipelines.reranking.llm import speaker
from retbench.pipelines.reranking.query_likelihood import questioner
from retbench.pipelines.runs.saved_run import First
from retbench.records.phase_timer import Meter
from retbench.rerankers.candidates import Pool, Reranker
from retbench.rerankers.embedding_rerankers import Asker, ByVectors, Feedback, Plain
from retbench.rerankers.lexical_ql import ByWords
from retbench.rerankers.listwise_embedding import Listing, Prompts
from retbench.retrievers.dense_retriever import Dense
from retbench.retrievers.query_likelihood import Dirichlet

Find = Callable[[str], ResolvedModel]


class Judge(Protocol):
    """A reranker before its models are loaded."""

    @property
    def wanted(self) -> Wanted:
        """What was typed, with models by their names: a record tells nothing about where they lie."""
        ...

    def baselines(self) -> Sequence["Judge"]:
        """What it must beat, besides the run itself."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides its order, besides what was typed."""
        ...

    def cards(self) -> list[dict[str, Any]]:
        """The cards of models that the first stage does not have."""
        ...

    def made(self, first: First, meter: Meter) -> Reranker:
        """The reranker at work."""
        ...

    def preview(self, first: First, pool: Pool) -> dict[str, Any]:
        """The prompt it would begin with, where it reads one; nothing is asked and no model is loaded."""
        ...


def judge(wanted: Wanted, first: First, own: ResolvedModel | None, find: Find) -> Judge:
    """The judge of a reranker. `own` is the first stage's candidate where it is at hand."""
    if isinstance(wanted.settings, Vectors):
        return _by_vectors(wanted, wanted.settings, first, own, find)
    if isinstance(wanted.settings, QueryLikelihood):
        return questioner(wanted.settings, first, find)
    if isinstance(wanted.settings, WordLikelihood):
        return WordJudge(wanted.settings)
    return speaker(wanted, first, own, find)


@dataclass(frozen=True)
class WordJudge:
    """Query likelihood over words: the corpus is indexed, no model is asked."""

    settings: WordLikelihood

    @property
    def wanted(self) -> Wanted:
        """As typed."""
        return of("ql", self.settings)

    def baselines(self) -> list[Judge]:
        """The run itself is what it must beat."""
        return []

    def describe(self) -> dict[str, Any]:
        """How words are made."""
        return {"words": self._lexical.describe()}

    def cards(self) -> list[dict[str, Any]]:
        """There is no model."""
        return []

    @property
    def _lexical(self) -> Lexical:
        return Lexical(variant="dirichlet", mu=self.settings.mu)

    def made(self, first: First, meter: Meter) -> Reranker:
        """Index the whole corpus: the smoothing needs it."""
        with meter.phase("index documents for ql"):
            index = Dirichlet(self._lexical, (joined(row, first.card.fields) for row in first.collection.corpus))
        return ByWords(index, self.settings.depth)

    def preview(self, first: First, pool: Pool) -> dict[str, Any]:
        """There is no prompt."""
        return {}


@dataclass(frozen=True)
class VectorJudge:
    """Vectors, Rocchio and E2Rank: an encoder, and the stored vectors of the candidates."""

    name: str
    settings: Vectors
    candidate: ResolvedModel
    spec: EncoderSpec
    borrowed: bool  # the encoder is not the first stage's

    @property
    def wanted(self) -> Wanted:
        """With the encoder's names, where it is not the first stage's."""
        model, method = (self.candidate.card.name, self.spec.method.name) if self.borrowed else (None, None)
        return of(self.name, replace(self.settings, model=model, method=method))

    def baselines(self) -> list[Judge]:
        """The same encoder asked with the plain query, where the run itself is not that."""
        if not self.borrowed or self.name == "vectors":
            return []
        return [replace(self, name="vectors", settings=Vectors(depth=self.settings.depth))]

    def describe(self) -> dict[str, Any]:
        """The encoder, where it is not the first stage's."""
        return {"encoder": self.spec.describe()} if self.borrowed else {}

    def cards(self) -> list[dict[str, Any]]:
        """The model's card, where it is not the first stage's."""
        if not self.borrowed:
            return []
        card = asdict(self.candidate.card)
        if card["weights"] and card["weights"]["path"]:
            card["weights"]["path"] = Path(card["weights"]["path"]).name
        return [card]

    def made(self, first: First, meter: Meter) -> Reranker:
        """Read the candidates' vectors, and load a model only for a prompt."""
        dense = dense_of(self.candidate, self.spec, first.card, first.collection, meter)
        rows = np.unique(np.concatenate([found[: self.settings.depth] for found in first.ranking.rows]))
        with meter.phase("read vectors of candidates", "texts"):
            after = dense.after()
            vectors = after(dense.documents(rows))

        def documents(wanted: np.ndarray) -> np.ndarray:
            return np.asarray(vectors[np.searchsorted(rows, wanted)])

        ask = self._asker(first, dense, documents, after)
        if isinstance(self.settings, E2Rank):
            return ByVectors(ask, documents, self.settings.depth, self.settings.window, self.settings.step)
        return ByVectors(ask, documents, self.settings.depth)

    def _asker(
        self, first: First, dense: Dense, documents: Callable[[np.ndarray], np.ndarray],
        after: Callable[[np.ndarray], np.ndarray],
    ) -> Asker:  # fmt: skip
        settings = self.settings
        if isinstance(settings, E2Rank):
            return Listing(self.candidate.encoder(self.spec), self._prompts(settings, first), after)
        with dense.meter.phase("read vectors of queries", "texts"):
            queries = after(dense.queries())
        return Feedback(queries, documents, settings) if isinstance(settings, Rocchio) else Plain(queries)

    def preview(self, first: First, pool: Pool) -> dict[str, Any]:
        """The first listwise prompt; vectors alone read nothing."""
        if not isinstance(self.settings, E2Rank):
            return {}
        prompts = self._prompts(self.settings, first)
        return prompts.told(prompts(pool))

    def _prompts(self, settings: E2Rank, first: First) -> Prompts:
        corpus, fields = first.collection.corpus, first.card.fields
        return Prompts(self._sheet(settings), settings, lambda row: joined(corpus[row], fields))

    def _sheet(self, settings: E2Rank) -> Sheet:
        card = self.candidate.card
        if self.candidate.local is None:
            raise InapplicableError(f"{card.name} is behind an endpoint and takes no prompt of ours", "use rocchio")
        wording = self.candidate.wording(self.spec)
        template = bool(wording.tokenizer.chat_template)
        if settings.form == "chat" and not template:
            raise InapplicableError(f"{card.name} has no chat template", "use form=plain, or leave form out")
        chat = template and settings.form != "plain"
        config = read_json(self.candidate.weights.folder / "config.json")
        context = card.context_length or config.get("max_position_embeddings") or 512
        limit = context if chat else min(card.max_length or context, context)
        return Sheet(wording, chat, min(settings.length or limit, context))


def _by_vectors(wanted: Wanted, settings: Vectors, first: First, own: ResolvedModel | None, find: Find) -> VectorJudge:
    spec = first.spec
    if settings.model is None and spec is None:
        raise UsageError(f"{first.record.model} has no vectors to rerank by", f"name a model: {wanted.name}:model=NAME")
    name = settings.model or first.record.model
    candidate = own if own and name in (own.card.name, first.record.model) else find(name)
    if candidate.lexical:
        raise UsageError(f"{name} has no vectors", "name a backbone (retbench list models)")
    (method, *_) = candidate.methods([catalog.method(settings.method)] if settings.method else [])
    fresh = candidate.spec(method, first.card, {})
    same = spec is not None and (spec.weights, spec.adaptor) == (fresh.weights, fresh.adaptor)
    if not same and settings.model is None:
        raise DataError(
            f"the weights of {name} here are not those of the run",
            "bring back the weights it was made with, or run again",
        )
    same = same and (settings.method is None or method == first.method)
    spec = spec if same and spec else fresh
    if spec.method.kind != "dense":
        raise InapplicableError(f"method {spec.method.name} ranks by words, not by vectors", "use a dense method")
    return VectorJudge(wanted.name, settings, candidate, spec, borrowed=not same)
