"""`retbench verify --against ENGINE`: another engine embeds a sample of a run and must give its vectors and scores.

The sample is drawn from the run's collection as `--sample` draws it. Both engines read the same token ids, except an
endpoint, which receives texts and has its own tokenizer.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.cards.engine import parse_engine
from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import require_texts
from retbench.corpora.texts import Texts, join_fields
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.postprocessing import normalize_vectors
from retbench.errors import DataError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.runs.saved_run import SavedRun, load_run
from retbench.retrievers.exact_search import search_exactly
from retbench.scoring.metrics import compute_mean_scores, score_run
from retbench.store.shard_store import VectorBlock

SAMPLE_DOCUMENTS = 200
DOCUMENTS_PER_QUERY = 20  # as in Collection.sample
MAX_BATCH_TOKENS = 2048  # small enough for any machine
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99}
MAX_SCORE_DIFFERENCE = 0.005


@dataclass(frozen=True)
class EngineAgreement:
    """The vectors and scores of two engines on one sample. The field names are keys of `--json`."""

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
        """Whether cosine and score difference are within the tolerance."""
        score_difference = abs(self.scores[0] - self.scores[1])
        return self.cosine_min >= MIN_COSINE[self.dtype] and score_difference <= MAX_SCORE_DIFFERENCE

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        tolerance = {"cosine": MIN_COSINE[self.dtype], "score": MAX_SCORE_DIFFERENCE}
        return {**asdict(self), "tolerance": tolerance, "agrees": self.agrees}


def compare_engines(run: Path, other_engine: str, weights: str | None = None) -> EngineAgreement:
    """Compare the engine of the run in a folder with another one on a sample of the run's texts."""
    saved_run = load_run(run)
    spec = saved_run.spec
    if spec is None:
        raise UsageError(f"the run of {saved_run.record.model} is lexical and has no vectors", "name a dense run")
    if spec.method.kind != "dense":
        raise UsageError(
            f"method {spec.method.name} uses logits, which other engines do not return", "name a dense run"
        )
    require_texts(saved_run.collection, saved_run.card, "the check against another engine")
    engines = (saved_run.record.settings["engine"], other_engine)
    encoders = [_load_encoder(saved_run, engine, weights) for engine in engines]
    sample = saved_run.collection.sample(max(1, SAMPLE_DOCUMENTS // DOCUMENTS_PER_QUERY))
    documents, queries = (
        [_embed_texts(encoder, sample, saved_run.card, role) for encoder in encoders] for role in ("document", "query")
    )
    widths = [vectors.shape[1] for vectors in queries]
    if len(set(widths)) > 1:
        raise DataError(
            f"{other_engine} returns vectors of width {widths[1]}, the run has {widths[0]}", "serve the run's own model"
        )
    cosines = np.concatenate(
        [(normalize_vectors(vectors) * normalize_vectors(others)).sum(1) for vectors, others in (documents, queries)]
    )
    scores = [_score_vectors(*vectors, sample, saved_run.card) for vectors in zip(queries, documents, strict=True)]
    return EngineAgreement(
        saved_run.record.settings_id, (saved_run.record.settings["engine"], encoders[1].spec.engine), spec.dtype,
        len(sample.corpus), len(sample.queries), float(cosines.min()), float(cosines.mean()),
        saved_run.card.metric, (scores[0], scores[1]),
    )  # fmt: skip


def _load_encoder(saved_run: SavedRun, engine_name: str, weights: str | None) -> DenseEncoder:
    record, spec = saved_run.record, saved_run.spec
    if spec is None:
        raise TypeError("the run has no vectors")
    name = record.model.partition("+")[0]  # after "+" comes the quantisation of a GGUF file
    card = catalog.find_model_card(name if name in catalog.load_model_cards() else weights or name)
    model = ResolvedModel.resolve(card, weights, lambda _: None, parse_engine(engine_name))
    overrides = Overrides(spec.dtype, max(spec.query_limit, spec.document_limit), rope=spec.rope)
    if model.local_weights and model.local_weights.fingerprint != spec.weights:
        raise DataError(
            f"the weights of {record.model} on this machine are not the weights of the run", "give --weights PATH"
        )
    method = spec.method
    if parse_engine(engine_name).name == "endpoint":
        method = replace(catalog.find_method("as-published"), similarity=method.similarity)
    return model.load_dense_encoder(model.build_encoder_spec(method, saved_run.card, overrides))


def _embed_texts(encoder: DenseEncoder, collection: Collection, card: TaskCard, role: Role) -> np.ndarray:
    texts: Texts = collection.corpus if role == "document" else collection.queries
    tokens = encoder.tokenize(
        (join_fields(row, card.fields if role == "document" else ("text",)) for row in texts), role
    )
    vectors = np.empty((len(tokens), encoder.dimension), dtype=np.float32)
    for rows in _split_batches(tokens.lengths):
        vectors[rows] = encoder.encode(tokens.select(rows))
    return vectors


def _split_batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, MAX_BATCH_TOKENS // max(1, int(lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def _score_vectors(queries: np.ndarray, documents: np.ndarray, sample: Collection, card: TaskCard) -> float:
    ranking = search_exactly(
        queries, [VectorBlock(np.arange(len(documents)), documents)], min(card.depth, len(documents))
    )
    ranked = ranking.filter_and_cut(sample, card.same_id == "drop", card.depth).to_document_ids(sample)
    return compute_mean_scores(score_run(ranked, sample.judgments, card.depth, card.relevant_from))[card.metric]


def format_agreement(agreement: EngineAgreement) -> str:
    """Format the comparison for the terminal."""
    a, (first, second), (score, other_score) = agreement, agreement.engines, agreement.scores
    difference = f"{score:.4f}  {other_score:.4f}  difference {other_score - score:+.4f}"
    return "\n".join(
        [
            f"{first} and {second} on {a.documents} documents and {a.queries} queries",
            f"  cosine   min {a.cosine_min:.6f}  mean {a.cosine_mean:.6f}  (at least {MIN_COSINE[a.dtype]})",
            f"  {a.metric}  {difference}  (at most {MAX_SCORE_DIFFERENCE})",
            "  they agree" if a.agrees else "  they do NOT agree",
        ]
    )
