"""Speakers: from `listwise` or `pointwise` as it was typed to the reranker at work, and what its tokens cost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards.engine import Engine
from retbench.cards.reranker_settings import Listwise, Pointwise, Wanted, of
from retbench.cards.user_config import home
from retbench.corpora.texts import joined
from retbench.engines.chat_client import Chat
from retbench.engines.device import default_dtype, device
from retbench.engines.fingerprints import read_json
from retbench.engines.generator import Generator, Local
from retbench.engines.http_server import Server, address
from retbench.engines.vllm_generator import Writer
from retbench.errors import UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.runs.saved_run import First
from retbench.records.phase_timer import Meter
from retbench.rerankers.answer_cache import Kept
from retbench.rerankers.candidates import Pool, Reranker
from retbench.rerankers.llm_prompts import Desk
from retbench.rerankers.llm_rerankers import Lists, Points
from retbench.store.key import digest


@dataclass(frozen=True)
class Speaker:
    """A language model that is asked about candidates."""

    name: str
    settings: Pointwise
    generator: Generator
    card: dict[str, Any]

    @property
    def wanted(self) -> Wanted:
        """With the model's name."""
        return of(self.name, replace(self.settings, model=self.generator.name))

    def baselines(self) -> list["Speaker"]:
        """The run itself is what it must beat."""
        return []

    def describe(self) -> dict[str, Any]:
        """The model and how it is run."""
        return self.generator.describe()

    def cards(self) -> list[dict[str, Any]]:
        """The model's card, where it has one."""
        return [self.card] if self.card else []

    def made(self, first: First, meter: Meter) -> Reranker:
        """The reranker at work; nothing is loaded before the first question that was not answered before."""
        kept = Kept(self.generator)
        return Priced(self._asking(kept, first), kept)

    def preview(self, first: First, pool: Pool) -> dict[str, Any]:
        """The first prompt; nothing is asked."""
        return {"prompt": self._asking(self.generator, first).prompt(pool)}

    def _asking(self, generator: Generator, first: First) -> Lists | Points:
        corpus, fields = first.collection.corpus, first.card.fields
        desk = Desk(generator, self.settings, lambda row: joined(corpus[row], fields), label(first))
        return Lists(desk, self.settings) if isinstance(self.settings, Listwise) else Points(desk)


@dataclass(frozen=True)
class Priced:
    """A reranker whose tokens have a price."""

    inner: Lists | Points
    kept: Kept

    @property
    def depth(self) -> int:
        """How many candidates it takes."""
        return self.inner.depth

    def __call__(self, pool: Pool) -> Any:
        """As the reranker inside."""
        return self.inner(pool)

    def facts(self) -> dict[str, Any]:
        """What was asked; answers found again cost nothing now, but belong to what the ranking cost."""
        facts = {**self.inner.facts(), "found_again": self.kept.again}
        told = home()
        rate = (told.rates or {}).get(self.kept.name)
        if rate:
            price = (facts["read"] * rate.read + facts["written"] * rate.written) / 1e6
            facts |= {"price": round(price, 6), "currency": told.currency}
        return facts

    def first(self) -> dict[str, Any]:
        """The first prompt and its answer."""
        return self.inner.first()


def label(first: First) -> str:
    """What the scores of a run are called in a prompt."""
    settings = first.record.settings
    return "BM25 score" if settings["retriever"] == "bm25" and not settings["rerankers"] else "search score"


def speaker(wanted: Wanted, first: First, own: ResolvedModel | None, find: Callable[[str], ResolvedModel]) -> Speaker:
    """The speaker of a wish. Behind an endpoint the model is a name that the server knows."""
    settings = wanted.settings
    if not isinstance(settings, Pointwise):
        raise TypeError(f"{wanted.name} asks no language model")
    if settings.engine == "endpoint":
        if settings.model is None:
            raise UsageError("an endpoint serves models by name", f"name it: {wanted.name}:engine=endpoint,model=NAME")
        chat = Chat(settings.model, Server(Engine("endpoint")), digest(address())[:12])
        return Speaker(wanted.name, settings, chat, {})
    if settings.model is None and first.spec is None:
        raise UsageError(f"{first.record.model} cannot write", f"name a language model: {wanted.name}:model=NAME")
    name = settings.model or first.record.model
    candidate = own if own and name in (own.card.name, first.record.model) else find(name)
    if candidate.lexical:
        raise UsageError(f"{name} cannot write", "name a language model (retbench list models)")
    return Speaker(wanted.name, settings, _here(candidate, settings.engine), _told(candidate))


def _here(candidate: ResolvedModel, engine: str) -> Generator:
    card, weights = candidate.card, candidate.weights
    config = read_json(weights.folder / "config.json")
    context = card.context_length or config.get("max_position_embeddings") or 2048
    told = (card.name, weights.folder, weights.fingerprint, default_dtype(card, True), context)
    if engine == "vllm":
        return Writer(*told)
    return Local(*told, device())


def _told(candidate: ResolvedModel) -> dict[str, Any]:
    card = asdict(candidate.card)
    if card["weights"] and card["weights"]["path"]:
        card["weights"]["path"] = Path(card["weights"]["path"]).name
    return card
