"""A retbench model inside mteb: `mteb.evaluate(retbench.as_mteb("minilm-l6"), tasks)`.

mteb hands over corpus and queries and scores what comes back; encoding, the store of vectors and exact search are
ours, so a task that was embedded once, there or here, is not embedded again. What a model reads follows our card of
that task where there is one: fields, lengths, instruction.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import Source, TaskCard
from retbench.cards.user_config import cache_folder
from retbench.corpora.collection import Collection
from retbench.corpora.collection_cache import write_texts
from retbench.corpora.hub_source import rows
from retbench.corpora.texts import Texts
from retbench.pipelines.evaluation.request import need_known
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.search import rank
from retbench.records.phase_timer import Meter, Silent

OFFICIAL = ("standard", "mteb")  # the protocols of our cards that are mteb's own


def as_mteb(
    model: str, method: str | None = None, weights: str | None = None, overrides: Mapping[str, Any] | None = None
) -> "InsideMteb":
    """A model and a method of ours, as a model of mteb's."""
    need_known(overrides or {})
    candidate = ResolvedModel.of(catalog.model(model), weights, lambda _: None)
    chosen = candidate.methods([catalog.method(method)] if method else [])[0]
    return InsideMteb(candidate, chosen, dict(overrides or {}))


def meta(card: ModelCard, method: Method, revision: str | None, overrides: Mapping[str, Any] | None = None) -> Any:
    """What mteb files results under: the model's repository, else our name of it.

    Another method than the card's own, or other settings, are an experiment to mteb: results in a folder of their own.
    """
    from mteb.models import ModelMeta

    own = card.kind == "lexical" or (card.method is not None and card.method.default == method.name)
    settings = {**({} if own else {"method": method.name}), **(overrides or {})}
    facts = {
        "name": card.weights.repo if card.weights and card.weights.repo else f"retbench/{card.name}",
        "revision": (card.weights.revision if card.weights else None) or revision or "retbench",
        "n_parameters": card.parameters,
        "open_weights": True,
        "experiment_kwargs": settings or None,
    }
    return ModelMeta.create_empty(overwrites=facts)


def task_card(name: str, split: str, subset: str) -> TaskCard:
    """Our card of an mteb task, or one with its defaults."""
    wanted = (name, split, None if subset == "default" else subset)
    for card in catalog.tasks():
        if (card.source.mteb, card.split, card.source.subset) == wanted and card.protocol in OFFICIAL:
            return card
    return TaskCard(name.lower(), Source("hub", mteb=name), split=split)


@dataclass
class InsideMteb:
    """mteb's search protocol: `index`, then `search`."""

    candidate: ResolvedModel
    method: Method
    overrides: dict[str, Any]
    corpus: Texts | None = None
    place: "TemporaryDirectory[str] | None" = field(default=None, repr=False)

    @property
    def mteb_model_meta(self) -> Any:
        """Who this is, for mteb's result files."""
        fingerprint = self.candidate.local.fingerprint[:40] if self.candidate.local else None
        return meta(self.candidate.card, self.method, fingerprint, self.overrides)

    def index(self, corpus: Any, **_: Any) -> None:
        """Keep the corpus as a memory-mapped file; it is embedded when the queries are known."""
        folder = cache_folder() / "collections"
        folder.mkdir(parents=True, exist_ok=True)
        self.place = TemporaryDirectory(prefix="mteb.", suffix=".partial", dir=folder)
        self.corpus = write_texts(rows(corpus), Path(self.place.name) / "corpus.arrow", "document")

    def search(
        self, queries: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, top_k: int,
        top_ranked: Mapping[str, Iterable[str]] | None = None, **_: Any,
    ) -> dict[str, dict[str, float]]:  # fmt: skip
        """The best documents of every query with their scores; `top_ranked` names the only ones that may be there."""
        if self.corpus is None or self.place is None:
            raise RuntimeError("mteb asked for a search before it handed over a corpus")
        asked = write_texts(rows(queries), Path(self.place.name) / "queries.arrow", "published query")
        excluded = dict(_excluded(self.corpus, top_ranked or {}))
        collection = Collection(self.corpus, asked, {}, excluded)
        card = task_card(task_metadata.name, hf_split, hf_subset)
        depth = min(top_k, len(self.corpus))
        k = min(depth + collection.most_excluded, len(self.corpus))
        found, _facts = rank(self.candidate, self.method, card, collection, self.overrides, Meter(Silent()), k)
        found = found.prepared(collection, drop_same_id=False, depth=depth)
        return {
            query: dict(zip(names, map(float, scores), strict=True))
            for (query, names), scores in zip(found.named(collection).items(), found.scores, strict=True)
        }


def _excluded(corpus: Texts, allowed: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, frozenset[str]]]:
    everything = frozenset(corpus.ids().to_pylist()) if allowed else frozenset()
    for query, documents in allowed.items():
        if barred := everything.difference(documents):
            yield query, barred
