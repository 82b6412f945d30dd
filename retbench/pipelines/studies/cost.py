"""Estimate what a study costs from its cards alone: tokens, time, memory and disk, without loading a model.

    embedding   tokens of a collection x FLOP per token (retbench/pipelines/estimate_cost.py)
    reranking   the prompts of all queries, of a cross-encoder its pairs; tokens that a language model writes are
                counted apart, because their speed does not follow from a peak
    training    tokens of all batches x forward, backward (half without weight gradients), recomputed activations,
                and the pairs that a cross-encoder scores before

A document's tokens are those of the stored collection, else of its suite's card, else a stated assumption. Those of
its image follow from the cards (`image_cost.py`).
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.default_methods import resolve_methods
from retbench.cards.model import ModelCard, ModelShape
from retbench.cards.options import split_options
from retbench.cards.recipe import CROSS_ENCODER_TEACHER, Recipe
from retbench.cards.recipe_keys import ADAPTOR
from retbench.cards.reranker_settings import (
    CrossEncoderSettings,
    E2RankSettings,
    ListwiseSettings,
    PointwiseSettings,
    QueryLikelihoodSettings,
    VectorsSettings,
    parse_reranker,
)
from retbench.cards.study import Stage
from retbench.cards.task import TaskCard
from retbench.corpora.cache_status import get_cache_status
from retbench.corpora.open_collection import get_collection_folder, open_collection, resolve_source
from retbench.engines import model_folders, weights
from retbench.engines.weight_sizes import BYTES_PER_TRAINED_WEIGHT, BYTES_PER_WEIGHT, count_parameters
from retbench.errors import RetbenchError
from retbench.pipelines.estimate_cost import (
    TEXT_BYTES,
    CorpusSize,
    DeviceSpec,
    compute_flop_per_token,
    count_pair_tokens,
)
from retbench.pipelines.studies.cells import StudyCell
from retbench.pipelines.studies.image_cost import count_image_tokens
from retbench.pipelines.studies.training import build_recipe
from retbench.store.vector_formats import compute_row_bytes
from retbench.system.user_config import load_user_config
from retbench.training.hub_datasets import HUB_SETS

DEFAULT_DOCUMENT_TOKENS = 150.0
QUERY_TOKENS = 16.0
WORD_TOKENS = 1.35  # per English word
ANSWER_TOKENS = 6  # per document of a listwise answer, for example "[12] > "
THOUGHT_TOKENS = 2000  # of a reasoning model before one answer; its limit is four times as much
REASONING_NAMES = re.compile(  # of models on a server, which have no card
    r"(^|[-/_.:])(r1|o[134]|qwq|gpt-5|gemini-2\.5|gemini-3|reasoner|reasoning|thinking|think)($|[-/_.:])", re.IGNORECASE
)


@dataclass(frozen=True)
class Work:
    """Work of one or more cells; `seconds` is None if a model or the size of the data is not known."""

    tokens: float = 0.0
    seconds: float | None = 0.0
    written_tokens: float = 0.0  # by a language model
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0  # of the largest model's weights and optimizer
    served_tokens: float = 0.0  # of `tokens`, those that a server reads
    served_price: float = 0.0  # of a server's tokens, at the rates in retbench.toml

    def __add__(self, other: "Work") -> "Work":
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Work(
            self.tokens + other.tokens, seconds, self.written_tokens + other.written_tokens,
            self.disk_bytes + other.disk_bytes, max(self.memory_bytes, other.memory_bytes),
            self.served_tokens + other.served_tokens, self.served_price + other.served_price,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The facts with the keys of `--json`; unknown and empty ones are left out."""
        facts = {"tokens": round(self.tokens), "disk_bytes": round(self.disk_bytes)}
        facts |= {"seconds": round(self.seconds, 1)} if self.seconds is not None else {}  # type: ignore[dict-item]  # a number
        optional = {
            "written_tokens": round(self.written_tokens), "memory_bytes": round(self.memory_bytes),
            "served_tokens": round(self.served_tokens), "served_price": round(self.served_price, 2),
        }  # fmt: skip
        return facts | {key: value for key, value in optional.items() if value}


@dataclass
class CostEstimator:
    """Estimates cells and trainings on one kind of device; vectors that an earlier cell stores cost nothing again."""

    device: DeviceSpec
    document_tokens: float | None = None  # given by the user, for every task
    embedded: set[tuple[Any, ...]] = field(default_factory=set)
    cards: dict[str, ModelCard] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)  # of models that the study trains; a child has their size
    counts: dict[str, tuple[int, int, float]] = field(default_factory=dict)

    def estimate_cell(self, stage: Stage, cell: StudyCell) -> Work:
        """The work of one cell, with its rerankers."""
        task, size = catalog.find_task_card(cell.argument), self.measure_corpus(stage, cell)
        work = Work()
        if stage.options.get("engine", "").partition(":")[0] != "endpoint":
            work += self._embed(self.find_card(cell.model), task, size, stage, cell.method)
        for argument in stage.options.get("rerank", ()):
            work += self._rerank(argument, self.find_card(cell.model), task, size)
        return work

    def estimate_training(self, stage: Stage, cell: StudyCell) -> Work:
        """The work of one training; an adaptor needs its collection's vectors and minutes."""
        recipe, card = build_recipe(stage, cell), self.find_card(cell.model)
        if isinstance(recipe, AdaptorRecipe):
            task, size = catalog.find_task_card(cell.argument), self.measure_corpus(stage, cell)
            return self._embed(card, task, size, stage, ADAPTOR)
        memory = _count_training_memory(card, recipe)
        tokens = _count_training_tokens(stage, cell, recipe, self.document_tokens or DEFAULT_DOCUMENT_TOKENS)
        disk = (card.parameters or 0) * BYTES_PER_WEIGHT["bfloat16"]
        if tokens is None:
            return Work(0.0, None, disk_bytes=disk, memory_bytes=memory)
        contrastive, pretraining = tokens
        pairs = self._score_pairs(recipe, stage, cell)
        recomputed = recipe.gradient_checkpointing + recipe.batch.gradient_caching
        passes = 1 + (1 if recipe.lora else 2) + recomputed
        seconds = self._time(card, contrastive * passes + pretraining * (3 + recipe.gradient_checkpointing), 256)
        return pairs + Work(contrastive + pretraining, seconds, disk_bytes=disk, memory_bytes=memory)

    def find_card(self, name: str) -> ModelCard:
        """The card of a model, completed from its folder."""
        if name not in self.cards:
            trained = (
                child for child in self.parents if name == child or name.startswith(f"{child}-")
            )  # or its stage 1
            self.cards[name] = measure_card(self.parents.get(next(trained, name), name))
        return self.cards[name]

    def measure_corpus(self, stage: Stage, cell: StudyCell) -> CorpusSize:
        """Documents, queries and mean tokens of a cell's task, as far as the model reads them."""
        task, card = catalog.find_task_card(cell.argument), self.find_card(cell.model)
        documents, queries, measured_tokens = self.count_texts(task)
        limits = [task.lengths.document, stage.set.get("max_length"), card.context_length]
        limit = min((limit for limit in limits if limit), default=10**9)
        tokens = min(float(limit), self.document_tokens or measured_tokens)
        tokens += count_image_tokens(card, task, stage.set)
        return CorpusSize(documents, stage.sample or queries, tokens)

    def count_texts(self, task: TaskCard) -> tuple[int, int, float]:
        """Documents, queries and mean tokens of a document; 0 for a count that is not known."""
        key = f"{task.name} {task.split}"
        if key not in self.counts:
            self.counts[key] = _count_texts(task)
        return self.counts[key]

    def _embed(self, card: ModelCard, task: TaskCard, size: CorpusSize, stage: Stage, method: str) -> Work:
        """Embed a collection, unless an earlier cell stores the same vectors."""
        trained = stage.name if stage.verb == "finetune" and method != ADAPTOR else None
        method = next(iter(resolve_methods(card, []))).name if method == ADAPTOR and card.method else method
        corpus = (task.collection or task.name, size.documents, task.fields, task.source.corpus_repo)
        key = (card.name, trained, method, corpus, repr(stage.set))
        if card.kind == "lexical" or key in self.embedded:
            return Work()
        if not size.documents:
            return Work(seconds=None)
        self.embedded.add(key)
        tokens = size.documents * size.tokens + size.queries * size.query_tokens
        width = stage.set.get("dimensions") or (card.shape.width if card.shape else 0)
        disk = compute_row_bytes(width, stage.set.get("vector_dtype", "fp32")) * (size.documents + size.queries)
        memory = (card.parameters or 0) * BYTES_PER_WEIGHT[card.dtype or "bfloat16"]
        return Work(tokens, self._time(card, tokens, size.tokens), disk_bytes=disk, memory_bytes=memory)

    def _rerank(self, argument: str, run_card: ModelCard, task: TaskCard, size: CorpusSize) -> Work:
        settings: Any = parse_reranker(argument).settings
        name = getattr(settings, "model", None)
        card = self.find_card(name) if name else run_card
        candidates = size.queries * settings.depth
        work = Work()
        if isinstance(settings, VectorsSettings) and name:
            documents = min(size.documents or candidates, candidates)  # candidate lists have no corpus to count
            pool = replace(size, documents=documents)
            work += self._embed(card, task, pool, Stage("", ()), settings.method or "candidates")
        prompt, written, length = _count_prompt_tokens(settings, size, card)
        if isinstance(settings, ListwiseSettings) and not settings.written and _reasons(card, settings):
            written *= 1 + THOUGHT_TOKENS / (ANSWER_TOKENS * (settings.window or settings.depth))
        if getattr(settings, "engine", "") == "endpoint":
            rate = (load_user_config().rates or {}).get(str(name))
            price = (prompt * rate.read + written * rate.written) / 1e6 if rate else 0.0
            return work + Work(prompt, 0.0, written, served_tokens=prompt, served_price=price)
        memory = (card.parameters or 0) * BYTES_PER_WEIGHT[card.dtype or "bfloat16"] if prompt else 0.0
        return work + Work(prompt, self._time(card, prompt, length), written, memory_bytes=memory)

    def _score_pairs(self, recipe: Recipe, stage: Stage, cell: StudyCell) -> Work:
        """What the cross-encoders read that filter a training's negatives or teach it."""
        queries = _count_training_queries(stage, cell)
        work = Work()
        for name, count in _count_pairs_per_query(recipe).items():
            card = self.find_card(name)
            length = count_pair_tokens(card, self.document_tokens or DEFAULT_DOCUMENT_TOKENS, QUERY_TOKENS)
            tokens = (queries or 0) * count * length
            work += Work(tokens, self._time(card, tokens, length) if queries else None)
        return work

    def _time(self, card: ModelCard, tokens: float, length: float) -> float | None:
        """Seconds of so many tokens in texts of this length; None if the size of the model is not known."""
        if not tokens:
            return 0.0
        if card.parameters is None:
            return None
        flop = compute_flop_per_token(card, length) if card.shape else 2.0 * card.parameters
        return tokens / self.device.compute_throughput(flop) / self.device.count


def measure_card(name: str) -> ModelCard:
    """The card of a model, with the shape and the number of weights of its folder where the card lacks them."""
    try:
        card = catalog.find_model_card(name)
    except RetbenchError:
        return ModelCard(name)  # of an earlier stage that has not been run
    if card.kind == "lexical" or (card.parameters and card.shape):
        return card
    if card.shape:
        same_shape = (other for other in catalog.load_model_cards() if other.shape == card.shape and other.parameters)
        return replace(card, parameters=next((other.parameters for other in same_shape), None))
    try:
        local = weights.find_local_weights(card)
    except RetbenchError:
        local = None
    if local is None:
        return card
    parameters = card.parameters or count_parameters(local.folder)
    return replace(card, parameters=parameters, shape=ModelShape(**model_folders.read_shape(local.folder)))


def _count_texts(task: TaskCard) -> tuple[int, int, float]:
    """The counts of a collection in the cache or in the user's folder, else those of the cards, else assumed."""
    status = get_cache_status(task)
    documents, queries = status.documents, status.queries
    if status.state == "your folder":
        collection = open_collection(task, with_images=True)
        documents, queries = len(collection.corpus), len(collection.queries)
    stored = get_collection_folder(resolve_source(task)) / "corpus.arrow"
    if documents and stored.is_file():
        return documents, queries or 0, stored.stat().st_size / documents / TEXT_BYTES
    suite = catalog.load_suites().cards.get(task.suite)
    assumed = suite.document_tokens if suite and suite.document_tokens else DEFAULT_DOCUMENT_TOKENS
    return documents or 0, queries or 0, float(assumed)


def _reasons(card: ModelCard, settings: ListwiseSettings) -> bool:
    """Whether a model writes a thought before its answer, by its card, or by its name on a server."""
    is_served = settings.engine == "endpoint"
    return card.specialisation == "reasoning" or (is_served and bool(REASONING_NAMES.search(card.name)))


def _count_prompt_tokens(settings: Any, size: CorpusSize, card: ModelCard) -> tuple[float, float, float]:
    """Tokens of all prompts, tokens of all answers, and the length of one prompt."""
    if isinstance(settings, CrossEncoderSettings):
        length = count_pair_tokens(card, size.tokens, size.query_tokens, settings.max_length)
        return size.queries * settings.depth * length, 0.0, length
    if isinstance(settings, ListwiseSettings):
        window = settings.window or settings.depth
        prompts = 1 + max(0, -(-(settings.depth - window) // settings.step))
        length = window * min(settings.cut, size.tokens) + size.query_tokens
        written = settings.written or ANSWER_TOKENS * window
        return size.queries * prompts * length, size.queries * prompts * written, length
    if isinstance(settings, PointwiseSettings | QueryLikelihoodSettings):
        length = min(getattr(settings, "cut", size.tokens), size.tokens) + size.query_tokens
        return size.queries * settings.depth * length, 0.0, length
    if isinstance(settings, E2RankSettings):
        length = settings.documents * min(settings.words * WORD_TOKENS, size.tokens)
        return size.queries * length, 0.0, length
    return 0.0, 0.0, 1.0


def _count_training_memory(card: ModelCard, recipe: Recipe) -> float:
    """Bytes of weights, gradients and optimizer on each device; activations come on top."""
    all_weights = recipe.lora is None or recipe.query_likelihood is not None
    return (card.parameters or 0) * (BYTES_PER_TRAINED_WEIGHT if all_weights else BYTES_PER_WEIGHT[recipe.dtype])


def _count_training_tokens(
    stage: Stage, cell: StudyCell, recipe: Recipe, document_tokens: float
) -> tuple[float, float] | None:
    """Tokens of contrastive training and of pretraining; None if the size of the data is not known."""
    queries = _count_training_queries(stage, cell)
    optimizer = recipe.optimizer
    steps_queries = (optimizer.max_steps or 0) * recipe.batch.train_batch_size
    epoch_queries = (queries or 0) * optimizer.num_train_epochs
    seen = min(filter(None, (steps_queries, epoch_queries)), default=0)
    if not seen or (recipe.query_likelihood and not queries):
        return None
    document = min(float(recipe.lengths.document or 512), document_tokens)
    query = document if recipe.crops else min(float(recipe.lengths.query or 64), QUERY_TOKENS)
    tokens = seen * (query + (1 + recipe.contrastive.hard_negatives) * document)
    if recipe.listwise:
        tokens += seen * recipe.listwise.max_documents * document
    pretraining = 0.0
    if recipe.query_likelihood and queries:
        lengths = recipe.query_likelihood.lengths
        epochs = recipe.query_likelihood.optimizer.num_train_epochs
        pretraining = queries * epochs * (min(lengths.document, document_tokens + 16) + query)
    return tokens, pretraining


def _count_pairs_per_query(recipe: Recipe) -> dict[str, int]:
    """The pairs of a query that each cross-encoder scores: the positive, and its candidates; no pair twice."""
    mining = recipe.mining
    candidates = mining.negatives_per_query if mining.source == "given" else mining.rank_to
    pairs: dict[str, int] = {}
    if mining.cross_encoder and not mining.file and recipe.contrastive.hard_negatives:
        pairs[_get_cross_encoder(mining.cross_encoder)] = 1 + candidates
    if recipe.teacher.startswith(CROSS_ENCODER_TEACHER):
        pairs.setdefault(_get_cross_encoder(recipe.teacher), 1 + min(candidates, mining.negatives_per_query))
    return pairs


def _get_cross_encoder(spelling: str) -> str:
    """The model's name, of a name or of `cross:model=NAME`."""
    return split_options(spelling)[1].get("model", spelling)


def _count_training_queries(stage: Stage, cell: StudyCell) -> int | None:
    """The number of training queries, if it is known before the data is read."""
    dataset, split = stage.options.get("dataset", cell.argument), stage.options.get("split", "train")
    if dataset in HUB_SETS:
        return HUB_SETS[dataset].queries
    try:
        card = catalog.find_task_card(dataset)
    except RetbenchError:
        return None
    return get_cache_status(replace(card, split=split, queries=None)).queries
