"""A retbench model inside mteb: `mteb.evaluate(retbench.as_mteb("minilm-l6"), tasks)`.

mteb passes the corpus and queries, and scores the ranking. retbench encodes, caches the embeddings and searches, so
a task that was embedded once, in mteb or in retbench, is not embedded again. If retbench has a card of the task, its
fields, lengths and instruction apply.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.collection_cache import write_texts
from retbench.corpora.hub_source import iterate_rows
from retbench.corpora.texts import Texts
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.models.search import build_retriever
from retbench.records.phase_timer import NoProgress, PhaseTimer
from retbench.system.user_config import get_cache_folder

MTEB_PROTOCOLS = ("standard", "mteb")  # protocols of task cards under which mteb measures too


def as_mteb(
    model: str, method: str | None = None, weights: str | None = None, overrides: Mapping[str, Any] | None = None
) -> "MtebSearchModel":
    """Return a retbench model and method as a model for mteb."""
    Overrides.parse(overrides or {})
    resolved_model = ResolvedModel.resolve(catalog.find_model_card(model), weights, lambda _: None)
    resolved_method = resolved_model.resolve_methods([catalog.find_method(method)] if method else [])[0]
    return MtebSearchModel(resolved_model, resolved_method, dict(overrides or {}))


def build_model_meta(
    card: ModelCard, method: Method, revision: str | None, overrides: Mapping[str, Any] | None = None
) -> Any:
    """Build mteb's model metadata: the name is the model's hub repository, or `retbench/NAME` without one.

    A method that is not the card's default, and other changed settings, become mteb `experiment_kwargs`: mteb writes
    such results to a separate folder.
    """
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    is_default_method = card.kind == "lexical" or (card.method is not None and card.method.default == method.name)
    settings = {**({} if is_default_method else {"method": method.name}), **(overrides or {})}
    fields = {
        "name": card.weights.repo if card.weights and card.weights.repo else f"retbench/{card.name}",
        "revision": (card.weights.revision if card.weights else None) or revision or "retbench",
        "n_parameters": card.parameters,
        "open_weights": True,
        "similarity_fn_name": None if card.kind == "lexical" else ScoringFunction(_name_similarity(method)),
        "experiment_kwargs": settings or None,
    }
    return ModelMeta.create_empty(overwrites=fields)


def _name_similarity(method: Method) -> str:
    """The similarity by mteb's name."""
    return "MaxSim" if method.vector_kind == "multi-vector" else method.similarity


def find_task_card(name: str, split: str, subset: str) -> TaskCard:
    """Return the task card for an mteb task, or a card with default values if there is none."""
    mteb_task = (name, split, None if subset == "default" else subset)
    for card in catalog.load_task_cards():
        if (card.source.mteb, card.split, card.source.subset) == mteb_task and card.protocol in MTEB_PROTOCOLS:
            return card
    return TaskCard(name.lower(), SourceSpec("hub", mteb=name), split=split)


@dataclass
class MtebSearchModel:
    """A model with mteb's search protocol: mteb calls `index`, then `search`."""

    model: ResolvedModel
    method: Method
    overrides: dict[str, Any]
    corpus: Texts | None = None
    folder: "TemporaryDirectory[str] | None" = field(default=None, repr=False)

    @property
    def mteb_model_meta(self) -> Any:
        """The metadata for mteb's result files."""
        fingerprint = self.model.local_weights.fingerprint[:40] if self.model.local_weights else None
        return build_model_meta(self.model.card, self.method, fingerprint, self._list_changed_settings())

    def _list_changed_settings(self) -> dict[str, Any]:
        """Return the overrides, with the dtype that computes if it is not the model's usual one, whoever chose it."""
        changed = {key: value for key, value in self.overrides.items() if key != "dtype"}
        if self.model.lexical_settings or self.model.local_weights is None:
            return changed
        choice = self.model.choose_dtype(Overrides.parse(self.overrides))
        return changed if choice.dtype == choice.usual else {**changed, "dtype": choice.dtype}

    def index(self, corpus: Any, **_: Any) -> None:
        """Write the corpus to a memory-mapped file. It is embedded in `search`, once the queries are known."""
        folder = get_cache_folder() / "collections"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = TemporaryDirectory(prefix="mteb.", suffix=".partial", dir=folder)
        self.corpus = write_texts(iterate_rows(corpus), Path(self.folder.name) / "corpus.arrow", "document")

    def search(
        self, queries: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, top_k: int,
        top_ranked: Mapping[str, Iterable[str]] | None = None, **_: Any,
    ) -> dict[str, dict[str, float]]:  # fmt: skip
        """Return the scores of the best documents of every query; with `top_ranked`, only of these documents."""
        if self.corpus is None or self.folder is None:
            raise RuntimeError("mteb called search() before index()")
        query_texts = write_texts(iterate_rows(queries), Path(self.folder.name) / "queries.arrow", "published query")
        excluded = dict(_list_excluded(self.corpus, top_ranked or {}))
        card = find_task_card(task_metadata.name, hf_split, hf_subset)
        collection = self.model.choose_inputs(Collection(self.corpus, query_texts, {}, excluded), card)
        depth = min(top_k, len(self.corpus))
        k = min(depth + collection.max_excluded, len(self.corpus))
        overrides, is_lexical = Overrides.parse(self.overrides), self.model.lexical_settings is not None
        spec = (
            None if is_lexical else self.model.build_encoder_spec(self.method, card, overrides, collection.has_images)
        )
        timer = PhaseTimer(NoProgress())
        ranking = build_retriever(self.model, spec, card, collection, overrides.search, timer).rank(k)
        ranking = ranking.filter_and_cut(collection, drop_same_id=False, depth=depth)
        return {
            query: dict(zip(names, map(float, scores), strict=True))
            for (query, names), scores in zip(ranking.to_document_ids(collection).items(), ranking.scores, strict=True)
        }


def _list_excluded(corpus: Texts, allowed: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, frozenset[str]]]:
    all_documents = frozenset(corpus.read_ids().to_pylist()) if allowed else frozenset()
    for query, documents in allowed.items():
        if excluded := all_documents.difference(documents):
            yield query, excluded
