"""The search of one cell: words through an index, or vectors through the store."""

from dataclasses import replace
from typing import Any

from retbench.cards import ann_settings
from retbench.cards.method import Method
from retbench.cards.model import LexicalSettings
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.shard_tasks import Alone
from retbench.errors import InapplicableError
from retbench.pipelines.models.model import ResolvedModel
from retbench.records.phase_timer import Meter
from retbench.retrievers.bm25 import BM25Index
from retbench.retrievers.dense_retriever import Dense
from retbench.retrievers.query_likelihood import DirichletIndex
from retbench.retrievers.ranking import Ranking


def rank(
    candidate: ResolvedModel, method: Method, card: TaskCard, collection: Collection, overrides: dict[str, Any],
    meter: Meter, k: int,
) -> tuple[Ranking, dict[str, Any]]:  # fmt: skip
    """The k best documents of every query, and what the store wrote down about the texts of each role."""
    if candidate.lexical:
        return _words(candidate.lexical, card, collection, meter, k), {}
    spec = candidate.spec(method, card, overrides)
    wanted = ann_settings.parse_ann_settings(overrides.get("search", "exact"))
    if wanted and method.kind != "dense":
        raise InapplicableError(
            f"method {method.name} ranks by terms", "leave --set search out, or use a dense --method"
        )
    dense = replace(dense_of(candidate, spec, card, collection, meter), near=wanted)
    return dense.rank(k), dense.facts()


def dense_of(
    candidate: ResolvedModel, spec: EncoderSpec, card: TaskCard, collection: Collection, meter: Meter
) -> Dense:
    """The stored vectors of a candidate; an adaptor has none of its own and changes those of its parent."""
    adaptor = candidate.adaptor() if spec.adaptor else None
    workers = candidate.workers(spec) if candidate.workers else Alone(lambda: candidate.encoder(spec))
    return Dense(candidate.stored_as, spec, workers, card, collection, meter, adaptor=adaptor)


def _words(lexical: LexicalSettings, card: TaskCard, collection: Collection, meter: Meter, k: int) -> Ranking:
    with meter.phase("index documents"):
        kind = DirichletIndex if lexical.variant == "dirichlet" else BM25Index
        index = kind(lexical, (join_fields(row, card.fields) for row in collection.corpus))
    with meter.phase("search"):
        return index.search((row.text for row in collection.queries), k)
