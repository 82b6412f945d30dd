"""The agreement story: another engine embeds a sample of a finished run, and must give its vectors and its scores.

The sample is the run's own collection cut down as `--sample` cuts it. Both engines read the same token ids; what is
compared is what they make of them. A server of texts has a tokenizer of its own, and is compared all the same.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.cards.engine import engine
from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import Texts, joined
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.errors import DataError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.runs.saved_run import First, ours
from retbench.records.load_run import find_run
from retbench.retrievers.exact_search import search
from retbench.scoring.metrics import mean_scores, score_run
from retbench.store.shard_store import Block

SAMPLE = 200  # documents
DOCUMENTS_A_QUERY = 20  # as Collection.sample draws them
TOKENS = 2048  # a batch; small enough anywhere
COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99}
SCORE = 0.005


@dataclass(frozen=True)
class Agreement:
    """Two engines on one sample."""

    run: str
    engines: tuple[str, str]
    dtype: str
    documents: int
    queries: int
    cosine_min: float
    cosine_mean: float
    metric: str
    scores: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Whether both are within the tolerance of the dtype."""
        return self.cosine_min >= COSINE[self.dtype] and abs(self.scores[0] - self.scores[1]) <= SCORE

    def json(self) -> dict[str, Any]:
        """What `--json` prints."""
        tolerance = {"cosine": COSINE[self.dtype], "score": SCORE}
        return {**asdict(self), "tolerance": tolerance, "agrees": self.agrees}


def agreement(run: str, results: Path, against: str, path: str | None = None) -> Agreement:
    """The run's engine and another one, on a sample of its texts."""
    first = ours(find_run(run, results))
    spec = first.spec
    if spec is None:
        raise UsageError(f"{first.record.model} was searched by words and has no vectors", "name a run with vectors")
    if spec.method.kind != "dense":
        raise UsageError(f"{spec.method.name} ranks by logits, which other engines do not give", "name a dense run")
    made = [_encoder(first, word, path) for word in (first.record.settings["engine"], against)]
    few = first.collection.sample(max(1, SAMPLE // DOCUMENTS_A_QUERY))
    documents, queries = ([_vectors(one, few, first.card, role) for one in made] for role in ("document", "query"))
    widths = [vectors.shape[1] for vectors in queries]
    if len(set(widths)) > 1:
        raise DataError(
            f"{against} gives vectors of width {widths[1]}, the run has {widths[0]}", "serve the run's own model"
        )
    cosines = np.concatenate([(one * other).sum(1) for one, other in (documents, queries)])
    pairs = zip(queries, documents, strict=True)
    scores = tuple(_score(asked, found, few, first.card) for asked, found in pairs)
    return Agreement(
        first.record.settings_id, (first.record.settings["engine"], made[1].spec.engine), spec.dtype,
        len(few.corpus), len(few.queries), float(cosines.min()), float(cosines.mean()),
        first.card.metric, (scores[0], scores[1]),
    )  # fmt: skip


def _encoder(first: First, word: str, path: str | None) -> DenseEncoder:
    record, spec = first.record, first.spec
    if spec is None:
        raise TypeError("a run without vectors")
    name = record.model.partition("+")[0]  # what follows is the quantisation of a file the user named
    card = catalog.model(name if name in catalog.models() else path or name)
    candidate = ResolvedModel.of(card, path, lambda _: None, engine(word))
    overrides: dict[str, Any] = {"dtype": spec.dtype, "max_length": max(spec.query_limit, spec.document_limit)}
    if spec.rope:
        overrides["rope"] = spec.rope
    if candidate.local and candidate.local.fingerprint != spec.weights:
        raise DataError(f"the weights of {record.model} are not those of the run", "give --weights PATH")
    method = catalog.method("as-published") if engine(word).name == "endpoint" else spec.method
    return candidate.encoder(candidate.spec(method, first.card, overrides))


def _vectors(encoder: DenseEncoder, collection: Collection, card: TaskCard, role: Role) -> np.ndarray:
    texts: Texts = collection.corpus if role == "document" else collection.queries
    tokens = encoder.prepare((joined(row, card.fields if role == "document" else ("text",)) for row in texts), role)
    matrix = np.empty((len(tokens), encoder.dimension), dtype=np.float32)
    for rows in _batches(tokens.lengths):
        matrix[rows] = encoder.vectors(tokens.take(rows))
    return matrix


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, TOKENS // max(1, int(lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def _score(queries: np.ndarray, documents: np.ndarray, few: Collection, card: TaskCard) -> float:
    found = search(queries, [Block(np.arange(len(documents)), documents)], min(card.depth, len(documents)))
    ranked = found.prepared(few, card.same_id == "drop", card.depth).named(few)
    return mean_scores(score_run(ranked, few.judgments, card.depth, card.relevant_from))[card.metric]


def text(found: Agreement) -> str:
    """The agreement for a reader."""
    one, other = found.scores
    return "\n".join(
        [
            f"{found.engines[0]} and {found.engines[1]} on {found.documents} documents and {found.queries} queries",
            f"  cosine   min {found.cosine_min:.6f}  mean {found.cosine_mean:.6f}  (at least {COSINE[found.dtype]})",
            f"  {found.metric}  {one:.4f}  {other:.4f}  difference {other - one:+.4f}  (at most {SCORE})",
            "  they agree" if found.agrees else "  they do NOT agree",
        ]
    )
