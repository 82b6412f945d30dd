"""Train an adaptor: a small net on stored vectors, learned from judged queries, with a test whether it helps."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.method import Similarity
from retbench.cards.model import (
    UNKNOWN_TRAINING_SETS,
    AdaptedVectors,
    DefaultMethod,
    ModelCard,
    TrainingProvenance,
    WeightsSource,
)
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.encoders.adaptor import ADAPTOR_FILE, Adaptor, load_adaptor
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.engines.memory import release_freed_pages, reset_peak_memory
from retbench.errors import DataError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.models.search import build_dense_retriever
from retbench.records import machine
from retbench.records.phase_timer import PhaseTimer
from retbench.retrievers.exact_search import search_exactly
from retbench.retrievers.ranking import get_excluded_ids
from retbench.scoring.metrics import score_run
from retbench.scoring.significance import compute_paired_p_value
from retbench.store.shard_store import VectorBlock
from retbench.system import toml_writer
from retbench.system.checksums import cached_sha256
from retbench.system.durable_files import create_writable_folder, write_file_atomically
from retbench.training import save_model, search_adaptor, training_data
from retbench.training.finished_training import require_same_training
from retbench.training.training_data import TrainingRequest

VALIDATION_POOL = 20_000  # documents of the validation during training; from a larger corpus the top ones are used
POOL_TOP_K = 200
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class AdaptorVectors:
    """The stored vectors of a collection's training queries and documents."""

    model: ResolvedModel
    spec: EncoderSpec
    card: TaskCard
    collection: Collection
    queries: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class ValidationResult:
    """nDCG@10 on the validation queries before and after, over the whole corpus. Field names are stored on the card."""

    before: float
    after: float
    p: float
    queries: int

    @property
    def improves(self) -> bool:
        """Whether the score after is significantly higher."""
        return self.after > self.before and self.p < SIGNIFICANCE_LEVEL

    def format_summary(self) -> str:
        """The result in one line."""
        scores = f"nDCG@10 {100 * self.before:.2f} -> {100 * self.after:.2f} on {self.queries} validation queries"
        return f"{'it helps' if self.improves else 'it does not help'}: {scores}, p = {self.p:.3f}"


def finetune_adaptor(request: TrainingRequest, recipe: AdaptorRecipe) -> ModelCard:
    """Train an adaptor and write its card, which states whether the adaptor helps."""
    parent = catalog.find_model_card(request.model)
    default_name = request.out.name if request.out else f"{parent.name}-{Path(request.dataset).name.lower()}-adaptor"
    name = (request.name or default_name).lower()
    folder = save_model.choose_output_folder(name, request.out)
    if (folder / catalog.CARD_FILE).exists() and request.resume:
        return _find_finished(folder, request, recipe)
    save_model.check_name_is_free(name, folder)
    if folder.exists() and any(folder.iterdir()) and not request.resume:
        raise UsageError(f"{folder} is not empty", "give another --out or --name")
    create_writable_folder(folder)
    vectors = _load_vectors(request, parent, recipe)
    training_rows, validation_rows = _split_rows(len(vectors.queries), recipe)
    score = _ValidationScorer.build(vectors, validation_rows, pooled=True)

    def say_score(adaptor: search_adaptor.TrainedAdaptor) -> None:
        score_text = f"nDCG@10 {100 * adaptor.score:.2f} at step {adaptor.step}"
        request.log_status(f"  alpha {adaptor.alpha:g}, beta {adaptor.beta:g}: {score_text}")

    data = _build_training_data(vectors, training_rows, recipe)
    best = search_adaptor.search_loss_weights(data, recipe, score, say_score)
    result = _validate(vectors, validation_rows, best)
    request.log_status(result.format_summary())
    provenance = _build_provenance(vectors, best, result, recipe, request)
    card = _write_adaptor(folder, name, vectors, best, provenance, result.format_summary())
    save_model.register_model(card, folder)
    return catalog.find_model_card(str(folder.resolve()))


def _find_finished(folder: Path, request: TrainingRequest, recipe: AdaptorRecipe) -> ModelCard:
    """The card of a finished adaptor, whose file must be that of the card."""
    card = catalog.find_model_card(str(folder.resolve()))
    require_same_training(card, folder, request, recipe)
    if card.adapted:
        load_adaptor(folder / card.adapted.file, card.adapted.sha256, "cosine")
    request.log_status(f"{folder} is finished: nothing to do")
    return card


def _load_vectors(request: TrainingRequest, parent: ModelCard, recipe: AdaptorRecipe) -> AdaptorVectors:
    if Path(request.dataset).expanduser().is_file():
        raise UsageError("an adaptor is trained on the judgments of a collection", "name a task or a BEIR folder")
    if parent.kind == "lexical":
        raise UsageError(f"{parent.name} has no vectors", "name a backbone (retbench list models)")
    card, collection = _load_training_queries(request, recipe)
    model = ResolvedModel.resolve(parent, None, request.log_status)
    (method, *_) = model.resolve_methods([])
    if method.kind != "dense" or parent.adapted:
        raise UsageError(
            f"{parent.name} has no vectors of its own to adapt", "name a model with a dense method, not an adaptor"
        )
    collection = model.choose_inputs(collection, card)
    length = recipe.max_length or model.card.max_length  # as the finished model's card will say
    limited = replace(model, card=replace(model.card, max_length=length))
    spec = limited.build_encoder_spec(method, card, Overrides(), collection.has_images)
    timer = PhaseTimer(request.progress)
    release_freed_pages()
    reset_peak_memory()  # the peak of this embedding is stored for the cells that will read the vectors
    retriever = build_dense_retriever(model, spec, card, collection, timer)
    with timer.time_phase("embed queries", "texts"):
        queries = retriever.embed_queries()
    with timer.time_phase("read vectors of documents", "texts"):
        transform = retriever.build_transform()
        documents = transform(retriever.embed_corpus())
    return AdaptorVectors(model, spec, card, collection, transform(queries), documents)


def _load_training_queries(request: TrainingRequest, recipe: AdaptorRecipe) -> tuple[TaskCard, Collection]:
    """The collection with only the queries to train and validate on: judged, and not in an evaluation."""
    training_data.require_split(request)
    card = replace(catalog.find_task_card(request.dataset), split=request.split, fingerprint=None)
    collection = open_collection(card, with_images=True)
    if (name := collection.queries.find_image_without_text()) is not None:
        raise UsageError(
            f"{card.name}: the query {name!r} is an image without a text, and queries of an evaluation are known by "
            "their texts",
            "train an adaptor on a task whose queries have texts",
        )
    texts = {query.text for query in training_data.load_training_set(request, with_images=True).queries}
    usable_rows = [row for row, query in enumerate(collection.queries) if query.text.strip() in texts]
    queries = collection.queries.take(_sample_rows(usable_rows, recipe))
    judgments = {query.id: collection.judgments[query.id] for query in queries}
    return card, replace(collection, queries=queries, judgments=judgments)


def _sample_rows(rows: list[int], recipe: AdaptorRecipe) -> list[int]:
    """At most `max_queries` rows, in their own order."""
    if recipe.max_queries is None or recipe.max_queries >= len(rows):
        return rows
    return sorted(np.random.default_rng(recipe.seed).choice(rows, recipe.max_queries, replace=False).tolist())


def _split_rows(count: int, recipe: AdaptorRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Rows of queries to train on, and rows to validate on."""
    order = np.random.default_rng(recipe.seed).permutation(count)
    validation = max(1, round(count * recipe.validation_ratio))
    if validation >= count:
        raise DataError(
            f"{count} queries are too few for training and validation", "name a collection with more training queries"
        )
    return np.sort(order[validation:]), np.sort(order[:validation])


def _get_grades(vectors: AdaptorVectors, rows: np.ndarray) -> list[dict[int, int]]:
    """For each query, document rows and their grades."""
    document_rows = {identifier: row for row, identifier in enumerate(vectors.collection.corpus.read_ids().to_pylist())}
    ids, judgments = vectors.collection.queries.read_ids().to_pylist(), vectors.collection.judgments
    return [
        {document_rows[document]: grade for document, grade in judgments[ids[row]].items() if document in document_rows}
        for row in rows
    ]


def _find_unranked(vectors: AdaptorVectors, rows: np.ndarray) -> list[frozenset[int]]:
    """For each query, the rows of the documents that the task never ranks for it."""
    document_rows = {identifier: row for row, identifier in enumerate(vectors.collection.corpus.read_ids().to_pylist())}
    ids, drop_same_id = vectors.collection.queries.read_ids().to_pylist(), vectors.card.same_id == "drop"
    excluded = [get_excluded_ids(vectors.collection, ids[row], drop_same_id) for row in rows]
    return [frozenset(document_rows[document] for document in ids if document in document_rows) for ids in excluded]


def _build_training_data(
    vectors: AdaptorVectors, rows: np.ndarray, recipe: AdaptorRecipe
) -> search_adaptor.AdaptorTrainingData:
    grades, lowest = _get_grades(vectors, rows), vectors.card.relevant_from
    pairs = [
        (query, document, grade)
        for query, judged in enumerate(grades)
        for document, grade in judged.items()
        if grade >= lowest
    ]
    queries = np.ascontiguousarray(vectors.queries[rows])
    top_k = recipe.negatives_top_k
    unranked = _find_unranked(vectors, rows)
    top_documents = _rank_documents(queries, vectors.documents, top_k, unranked) if top_k else None
    return search_adaptor.AdaptorTrainingData(
        queries,
        vectors.documents,
        np.array(pairs, dtype=np.int64),
        grades,
        top_documents,
        vectors.spec.method.similarity,
    )


def _rank_documents(
    queries: np.ndarray, documents: np.ndarray, k: int, unranked: list[frozenset[int]]
) -> list[np.ndarray]:
    """The rows of each query's k nearest documents, without those that the task never ranks for it."""
    depth = min(k + max(map(len, unranked)), len(documents))
    ranking = search_exactly(queries, [VectorBlock(np.arange(len(documents)), documents)], depth)
    return [
        rows[[int(row) not in left_out for row in rows]][:k] if left_out else rows[:k]
        for rows, left_out in zip(ranking.rows, unranked, strict=True)
    ]


@dataclass(frozen=True)
class _ValidationScorer:
    """nDCG@10 of the validation queries for any adaptor."""

    queries: np.ndarray
    documents: np.ndarray
    judgments: dict[str, dict[str, int]]
    unranked: list[frozenset[int]]
    similarity: Similarity

    @staticmethod
    def build(vectors: AdaptorVectors, rows: np.ndarray, pooled: bool) -> "_ValidationScorer":
        """Over the whole corpus; `pooled` limits a large one to the top and the judged documents of each query."""
        queries, grades = np.ascontiguousarray(vectors.queries[rows]), _get_grades(vectors, rows)
        pool, unranked = np.arange(len(vectors.documents)), _find_unranked(vectors, rows)
        if pooled and len(pool) > VALIDATION_POOL:
            judged = [document for query_grades in grades for document in query_grades]
            top = _rank_documents(queries, vectors.documents, POOL_TOP_K, unranked)
            pool = np.unique(np.concatenate([*top, judged]).astype(np.int64))
        positions = {int(row): number for number, row in enumerate(pool)}
        judgments = {
            str(query): {str(positions[document]): grade for document, grade in query_grades.items()}
            for query, query_grades in enumerate(grades)
        }
        left_out = [frozenset(positions[row] for row in query_rows if row in positions) for query_rows in unranked]
        similarity = vectors.spec.method.similarity
        return _ValidationScorer(queries, vectors.documents[pool], judgments, left_out, similarity)

    def score_queries(self, transform: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        """nDCG@10 of each query with transformed vectors."""
        rows = _rank_documents(transform(self.queries), transform(self.documents), 10, self.unranked)
        rankings = {str(query): [str(row) for row in ranked] for query, ranked in enumerate(rows)}
        return [scores["ndcg_at_10"] for scores in score_run(rankings, self.judgments, 100).values()]

    def __call__(self, tensors: dict[str, np.ndarray]) -> float:
        """The mean nDCG@10 of an adaptor."""
        return float(np.mean(self.score_queries(Adaptor(tensors, self.similarity))))


def _validate(vectors: AdaptorVectors, rows: np.ndarray, best: search_adaptor.TrainedAdaptor) -> ValidationResult:
    scorer = _ValidationScorer.build(vectors, rows, pooled=False)
    adaptor = Adaptor(best.tensors, vectors.spec.method.similarity)
    before, after = scorer.score_queries(lambda plain: plain), scorer.score_queries(adaptor)
    p = compute_paired_p_value(np.array(after), np.array(before)) if after != before else 1.0
    return ValidationResult(float(np.mean(before)), float(np.mean(after)), p, len(rows))


def _build_provenance(
    vectors: AdaptorVectors,
    best: search_adaptor.TrainedAdaptor,
    result: ValidationResult,
    recipe: AdaptorRecipe,
    request: TrainingRequest,
) -> TrainingProvenance:
    """What the card stores about the training."""
    data = {"set": vectors.card.name, "split": vectors.card.split, "queries": len(vectors.queries)}
    run = {"alpha": best.alpha, "beta": best.beta, "steps": best.step, "helps": result.improves, **asdict(result)}
    packages = machine.describe_machine()["packages"]
    return TrainingProvenance(asdict(recipe), vectors.spec.weights, data, run, packages, request.command)


def _write_adaptor(
    folder: Path,
    name: str,
    vectors: AdaptorVectors,
    best: search_adaptor.TrainedAdaptor,
    provenance: TrainingProvenance,
    summary: str,
) -> ModelCard:
    """Write the adaptor first and its card last."""
    write_file_atomically(folder / ADAPTOR_FILE, save(best.tensors))
    parent, checksum, method = vectors.model.card, cached_sha256(folder / ADAPTOR_FILE), vectors.spec.method
    known_sets = parent.training_sets if parent.training_sets is not None else (UNKNOWN_TRAINING_SETS,)
    card = replace(
        parent,
        name=name,
        aliases=(),
        description=f"{parent.name} with an adaptor trained on {vectors.card.name}; {summary}",
        parent=parent.name,
        training_sets=tuple(dict.fromkeys((*known_sets, vectors.card.name))),
        weights=WeightsSource("path", path=".", sha256=checksum),
        method=DefaultMethod(method.name, method),
        dtype=vectors.spec.weights_dtype,
        max_length=provenance.recipe["max_length"] or parent.max_length,
        adapted=AdaptedVectors(_get_reference(parent), ADAPTOR_FILE, checksum),
        reference=(),
        eos=None,
        training=provenance,
    )
    write_file_atomically(folder / catalog.CARD_FILE, toml_writer.format_card(card).encode())
    return card


def _get_reference(parent: ModelCard) -> str:
    """How the parent is found again: by its name, or by folder or hub id if it has no card."""
    if parent.name in catalog.load_model_cards() or parent.weights is None:
        return parent.name
    return str(Path(parent.weights.path).resolve()) if parent.weights.path else parent.weights.repo or parent.name


def summarize_adaptor(card: ModelCard) -> dict[str, Any]:
    """The adaptor in a few facts."""
    if card.training is None or card.weights is None:
        raise DataError(f"{card.name} was not trained by retbench", "name a folder that `finetune` wrote")
    run = card.training.run
    facts = {key: run[key] for key in ("alpha", "beta", "steps", "queries", "before", "after", "p", "helps")}
    verdict = "it helps" if run["helps"] else "it does not help"
    return {"model": card.name, "folder": card.weights.path, "verdict": verdict, **facts}
