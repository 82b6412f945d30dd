"""The adaptor story: judged queries and stored vectors become a small net, and an honest word about it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from retbench.cards import catalog, toml_writer
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.checksums import cached_sha256
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
from retbench.encoders.adaptor import ADAPTOR_FILE, Adaptor
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.engines.memory import free_pages, reset_peak
from retbench.errors import DataError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.search import dense_of
from retbench.records import machine
from retbench.records.phase_timer import Meter
from retbench.retrievers.exact_search import search as nearest
from retbench.scoring.metrics import score_run
from retbench.scoring.significance import paired_test
from retbench.store.shard_store import VectorBlock, write_file_atomically
from retbench.training import save_model, search_adaptor, training_data
from retbench.training.training_data import TrainingRequest

VALIDATION_POOL = (
    20_000  # documents that validation looks at while training; of a larger corpus, the first of each query
)
POOL_TOP_K = 200
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class AdaptorVectors:
    """Everything that is learned from, as it was stored."""

    candidate: ResolvedModel
    spec: EncoderSpec
    card: TaskCard
    collection: Collection
    queries: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class ValidationResult:
    """Validation before and after, on the whole corpus."""

    before: float
    after: float
    p: float
    queries: int

    @property
    def improves(self) -> bool:
        """Better, and not by chance."""
        return self.after > self.before and self.p < SIGNIFICANCE_LEVEL

    def format_summary(self) -> str:
        """The verdict in one line."""
        figures = f"nDCG@10 {100 * self.before:.2f} -> {100 * self.after:.2f} on {self.queries} validation queries"
        return f"{'it helps' if self.improves else 'it does not help'}: {figures}, p = {self.p:.3f}"


def train_adaptor(wish: TrainingRequest, recipe: AdaptorRecipe) -> dict[str, Any]:
    """Train an adaptor, write its card, and say whether it helps."""
    parent = catalog.find_model_card(wish.model)
    name = (wish.name or (wish.out.name if wish.out else f"{parent.name}-{_set(wish)}-adaptor")).lower()
    folder = save_model.choose_output_folder(name, wish.out)
    if (folder / catalog.CARD_FILE).exists() and wish.resume:
        return summarize_adaptor(catalog.find_model_card(str(folder.resolve())))
    save_model.check_name_is_free(name, folder)
    if folder.exists() and any(folder.iterdir()) and not wish.resume:
        raise UsageError(f"{folder} is not empty", "give another --out or --name")
    vectors = _vectors(wish, parent, recipe)
    learning, validation = _split(len(vectors.queries), recipe)
    score = _ValidationScorer.build(vectors, validation, small=True)

    def told(one: search_adaptor.TrainedAdaptor) -> None:
        found = f"nDCG@10 {100 * one.score:.2f} at step {one.step}"
        wish.say(f"  alpha {one.alpha:g}, beta {one.beta:g}: {found}")

    best = search_adaptor.search_loss_weights(_lessons(vectors, learning, recipe), recipe, score, told)
    verdict = _verdict(vectors, validation, best)
    wish.say(verdict.format_summary())
    card = _write(folder, name, vectors, best, verdict.format_summary(), _told(vectors, best, verdict, recipe, wish))
    save_model.register_model(card, folder)
    return summarize_adaptor(catalog.find_model_card(str(folder.resolve())))


def _set(wish: TrainingRequest) -> str:
    return Path(wish.dataset).name.lower()


def _vectors(wish: TrainingRequest, parent: ModelCard, recipe: AdaptorRecipe) -> AdaptorVectors:
    if Path(wish.dataset).expanduser().is_file():
        raise UsageError("an adaptor learns from a collection's judgments", "name a task or a BEIR folder")
    if parent.kind == "lexical":
        raise UsageError(f"{parent.name} has no vectors", "name a backbone (retbench list models)")
    kept = {query.text for query in training_data.load_training_set(wish).queries}
    card = replace(catalog.find_task_card(wish.dataset), split=wish.split, fingerprint=None)
    whole = open_collection(card)
    rows = _drawn([row for row, query in enumerate(whole.queries) if query.text.strip() in kept], recipe)
    queries = whole.queries.take(rows)
    collection = replace(whole, queries=queries, judgments={query.id: whole.judgments[query.id] for query in queries})
    candidate = ResolvedModel.of(parent, None, wish.say)
    (method, *_) = candidate.methods([])
    if method.kind != "dense" or parent.adapted:
        raise UsageError(f"{parent.name} has no plain vectors", "name a model with a dense method, not an adaptor")
    spec = candidate.spec(method, card, {"max_length": recipe.max_length} if recipe.max_length else {})
    meter = Meter(wish.show)
    free_pages()
    reset_peak()  # what is embedded here remembers its peak for the cells that will read it
    dense = dense_of(candidate, spec, card, collection, meter)
    with meter.phase("embed queries", "texts"):
        asked = dense.queries()
    with meter.phase("read vectors of documents", "texts"):
        after = dense.after()
        documents = after(dense.every())
    return AdaptorVectors(candidate, spec, card, collection, after(asked), documents)


def _drawn(rows: list[int], recipe: AdaptorRecipe) -> list[int]:
    """As many as the recipe wants, in their own order."""
    if recipe.max_queries is None or recipe.max_queries >= len(rows):
        return rows
    return sorted(np.random.default_rng(recipe.seed).choice(rows, recipe.max_queries, replace=False).tolist())


def _split(count: int, recipe: AdaptorRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and rows to choose by."""
    order = np.random.default_rng(recipe.seed).permutation(count)
    held = max(1, round(count * recipe.validation_ratio))
    if held >= count:
        raise DataError(f"{count} queries cannot be split", "name a collection with more training queries")
    return np.sort(order[held:]), np.sort(order[:held])


def _grades(vectors: AdaptorVectors, rows: np.ndarray) -> list[dict[int, int]]:
    """By query: document rows and their grades."""
    known = {name: row for row, name in enumerate(vectors.collection.corpus.ids().to_pylist())}
    ids = vectors.collection.queries.ids().to_pylist()
    judged = vectors.collection.judgments
    return [{known[d]: grade for d, grade in judged[ids[row]].items() if d in known} for row in rows]


def _lessons(vectors: AdaptorVectors, rows: np.ndarray, recipe: AdaptorRecipe) -> search_adaptor.AdaptorTrainingData:
    grades, lowest = _grades(vectors, rows), vectors.card.relevant_from
    pairs = [(q, d, grade) for q, found in enumerate(grades) for d, grade in found.items() if grade >= lowest]
    queries = np.ascontiguousarray(vectors.queries[rows])
    top = _first(queries, vectors.documents, recipe.negatives_top_k) if recipe.negatives_top_k else None
    return search_adaptor.AdaptorTrainingData(queries, vectors.documents, np.array(pairs, dtype=np.int64), grades, top)


def _first(queries: np.ndarray, documents: np.ndarray, k: int) -> list[np.ndarray]:
    return nearest(queries, [VectorBlock(np.arange(len(documents)), documents)], min(k, len(documents))).rows


@dataclass(frozen=True)
class _ValidationScorer:
    """nDCG@10 of the validation queries for any adaptor."""

    queries: np.ndarray
    documents: np.ndarray
    judged: dict[str, dict[str, int]]

    @staticmethod
    def build(vectors: AdaptorVectors, rows: np.ndarray, small: bool) -> "_ValidationScorer":
        """Over the whole corpus, or over as much of a large one as can be looked at often."""
        queries, grades = np.ascontiguousarray(vectors.queries[rows]), _grades(vectors, rows)
        pool = np.arange(len(vectors.documents))
        if small and len(pool) > VALIDATION_POOL:
            judged = [d for found in grades for d in found]
            pool = np.unique(np.concatenate([*_first(queries, vectors.documents, POOL_TOP_K), judged]).astype(np.int64))
        place = {int(row): str(number) for number, row in enumerate(pool)}
        named = {str(q): {place[d]: grade for d, grade in found.items()} for q, found in enumerate(grades)}
        return _ValidationScorer(queries, vectors.documents[pool], named)

    def score_queries(self, change: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        """nDCG@10 of each query."""
        documents = change(self.documents)
        found = nearest(
            change(self.queries), [VectorBlock(np.arange(len(documents)), documents)], min(10, len(documents))
        )
        ranked = {str(q): [str(row) for row in rows] for q, rows in enumerate(found.rows)}
        return [one["ndcg_at_10"] for one in score_run(ranked, self.judged, 100).values()]

    def __call__(self, tensors: dict[str, np.ndarray]) -> float:
        """Their mean."""
        return float(np.mean(self.score_queries(Adaptor(tensors))))


def _verdict(vectors: AdaptorVectors, rows: np.ndarray, best: search_adaptor.TrainedAdaptor) -> ValidationResult:
    whole = _ValidationScorer.build(vectors, rows, small=False)
    before, after = whole.score_queries(lambda plain: plain), whole.score_queries(Adaptor(best.tensors))
    p = paired_test(np.array(after), np.array(before)) if after != before else 1.0
    return ValidationResult(float(np.mean(before)), float(np.mean(after)), p, len(rows))


def _told(
    vectors: AdaptorVectors,
    best: search_adaptor.TrainedAdaptor,
    verdict: ValidationResult,
    recipe: AdaptorRecipe,
    wish: TrainingRequest,
) -> TrainingProvenance:
    """What the card says about the training."""
    data = {"set": vectors.card.name, "split": vectors.card.split, "queries": len(vectors.queries)}
    run = {"alpha": best.alpha, "beta": best.beta, "steps": best.step, "helps": verdict.improves, **asdict(verdict)}
    packages = machine.describe()["packages"]
    return TrainingProvenance(asdict(recipe), vectors.spec.weights, data, run, packages, wish.command)


def _write(
    folder: Path,
    name: str,
    vectors: AdaptorVectors,
    best: search_adaptor.TrainedAdaptor,
    words: str,
    training: TrainingProvenance,
) -> ModelCard:
    """The adaptor first, its card last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file_atomically(folder / ADAPTOR_FILE, save(best.tensors))
    parent, checksum, method = vectors.candidate.card, cached_sha256(folder / ADAPTOR_FILE), vectors.spec.method
    sets = parent.training_sets if parent.training_sets is not None else (UNKNOWN_TRAINING_SETS,)
    card = replace(
        parent,
        name=name,
        aliases=(),
        description=f"{parent.name} with an adaptor trained on {vectors.card.name}; {words}",
        parent=parent.name,
        training_sets=tuple(dict.fromkeys((*sets, vectors.card.name))),
        weights=WeightsSource("path", path=".", sha256=checksum),
        method=DefaultMethod(method.name, method),
        dtype=vectors.spec.dtype,
        max_length=training.recipe["max_length"] or parent.max_length,
        adapted=AdaptedVectors(_reference(parent), ADAPTOR_FILE, checksum),
        reference=(),
        eos=None,
        training=training,
    )
    write_file_atomically(folder / catalog.CARD_FILE, toml_writer.format_card(card).encode())
    return card


def _reference(parent: ModelCard) -> str:
    """How the parent is found again: by its name, or where it lies if no card says so."""
    if parent.name in catalog.load_model_cards() or parent.weights is None:
        return parent.name
    return str(Path(parent.weights.path).resolve()) if parent.weights.path else parent.weights.repo or parent.name


def summarize_adaptor(card: ModelCard) -> dict[str, Any]:
    """The adaptor in a few facts."""
    if card.training is None or card.weights is None:
        raise DataError(f"{card.name} was not trained here", "name a folder that `finetune` wrote")
    run = card.training.run
    facts = {key: run[key] for key in ("alpha", "beta", "steps", "queries", "before", "after", "p", "helps")}
    verdict = "it helps" if run["helps"] else "it does not help"
    line = f"retbench run --model {card.name} --task {card.training.data['set']}"
    return {"model": card.name, "folder": card.weights.path, "verdict": verdict, **facts, "next": line}
