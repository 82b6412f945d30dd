"""What a training was asked for, and its dataset without the queries of any evaluation."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog, options
from retbench.cards.mining import MiningSettings
from retbench.cards.task import TaskCard
from retbench.corpora.open_collection import list_splits, open_collection
from retbench.errors import DataError, MissingError, UsageError
from retbench.records.phase_timer import NoProgress, ProgressListener
from retbench.training import msmarco_triples
from retbench.training.hub_corpora import HUB_CORPORA, load_hub_corpus
from retbench.training.hub_datasets import HUB_SETS, load_hub_training_set
from retbench.training.training_set import TrainingSet, build_training_set, name_training_file, read_training_file

FILE_SUFFIXES = (".jsonl", ".gz")
DEFAULT_NEGATIVES = MiningSettings().negatives_per_query


@dataclass(frozen=True)
class TrainingRequest:
    """What the user asked for, besides the recipe.

    `eval_task` is evaluated during training, written `task` or `task:split=dev,sample=100`.
    """

    dataset: str
    model: str
    name: str | None = None
    out: Path | None = None
    split: str = "train"
    eval_task: str | None = None
    export: str | None = None
    report_to: tuple[str, ...] = ()
    resume: bool = False
    force: bool = False
    progress: ProgressListener = field(default_factory=NoProgress)
    log_status: Callable[[str], None] = lambda _: None
    log_metrics: Callable[[dict[str, Any]], None] = lambda _: None
    command: str = "retbench.finetune(...)"


def parse_eval_task(argument: str) -> tuple[TaskCard, int | None]:
    """The task to evaluate during training, and how many of its queries to use."""
    name, changes = options.split_options(argument)
    sample = changes.pop("sample", None)
    if sample is not None and not (sample.isdecimal() and int(sample)):
        raise UsageError(f"{argument}: sample={sample} must be at least 1", "give a number of queries, 1 or more")
    card = options.apply_options(catalog.find_task_card(name), changes, fixed=("name", "source"))
    return replace(card, fingerprint=None), int(sample) if sample else None


def find_task_of_dataset(dataset: str) -> TaskCard | None:
    """The task that a dataset is evaluated by; None for a file of the user's own."""
    if dataset in HUB_SETS:
        return catalog.find_task_card(HUB_SETS[dataset].evaluation_tasks[0])
    path = Path(dataset).expanduser()
    has_no_task = dataset in HUB_CORPORA or path.is_file() or path.suffix in FILE_SUFFIXES
    return None if has_no_task else catalog.find_task_card(dataset)


def name_dataset(dataset: str) -> str:
    """The name of a dataset, as the card of a trained model has it."""
    path = Path(dataset).expanduser()
    if path.is_file() or path.suffix in FILE_SUFFIXES:
        return name_training_file(path)
    return dataset if dataset in HUB_SETS or dataset in HUB_CORPORA else catalog.find_task_card(dataset).name


def require_split(request: TrainingRequest) -> None:
    """Raise an error if the dataset is a collection without the split to train on; torch is not needed for it."""
    path = Path(request.dataset).expanduser()
    is_of_hub = request.dataset in HUB_SETS or request.dataset in HUB_CORPORA
    if is_of_hub or path.is_file() or path.suffix in FILE_SUFFIXES:
        return
    card, split = catalog.find_task_card(request.dataset), request.split.partition("/")[0]
    known = list_splits(replace(card, split=split))
    if split not in known:
        half = card.published_split if card.published_split in known else known[0]
        raise UsageError(
            f"{card.name} has no split {split!r} to train on; it has {', '.join(known)}",
            f"train on half of the queries of a split (--set split={half}/train; the other half is for tests), or name "
            "a task with a train split",
        )


def load_training_set(
    request: TrainingRequest, negatives_per_query: int = DEFAULT_NEGATIVES, with_images: bool = False
) -> TrainingSet:
    """Queries and their passages, without any query of an evaluation; `with_images` is for a caller that reads them."""
    full_set = _read_dataset(request, negatives_per_query, with_images)
    training_set = remove_leaked_queries(full_set, _iterate_evaluation_queries(request, with_images))
    request.log_status(
        f"{full_set.name}: {len(training_set.queries):,} queries, {len(full_set.passages):,} passages; "
        f"removed {training_set.facts['leaked_queries_removed']} queries "
        f"({training_set.facts['leaked_texts']} texts) that an evaluation also has"
    )
    return training_set


def remove_leaked_queries(training_set: TrainingSet, evaluation_queries: Iterable[str]) -> TrainingSet:
    """The set without the queries that an evaluation also has; differences in whitespace are ignored."""
    leaks = set(map(_collapse_whitespace, evaluation_queries))
    texts = [_collapse_whitespace(query.text) for query in training_set.queries]
    queries = [query for query, text in zip(training_set.queries, texts, strict=True) if text not in leaks]
    removed = len(training_set.queries) - len(queries)
    if removed and not queries:
        raise DataError(
            f"{training_set.name}: all {removed:,} training queries are also queries of an evaluation",
            "train on other queries: a score on what a model was trained on says nothing",
        )
    return training_set.with_queries(queries, leaked_queries_removed=removed, leaked_texts=len(leaks & set(texts)))


def _collapse_whitespace(text: str) -> str:
    return " ".join(text.split())


def _read_dataset(request: TrainingRequest, negatives_per_query: int, with_images: bool = False) -> TrainingSet:
    path = Path(request.dataset).expanduser()
    if path.is_file():
        return read_training_file(path)
    if request.dataset in HUB_SETS:
        return load_hub_training_set(request.dataset)
    if request.dataset in HUB_CORPORA:
        raise UsageError(f"{request.dataset} has texts without queries", "train on it with --recipe llm2ir")
    if path.suffix in FILE_SUFFIXES:
        raise MissingError(f"there is no file {request.dataset}", "name a jsonl file, a folder or a task")
    card = catalog.find_task_card(request.dataset)
    if request.split in (card.split, f"{card.split}/test") and not request.force:
        raise UsageError(
            f"{card.name} is evaluated on its split {card.split!r}; training on that split would make scores invalid",
            f"train on another split, or on half of its queries (--set split={card.split}/train), or add --force, "
            "which is noted on the model's card",
        )
    require_split(request)
    train_card = replace(card, split=request.split, fingerprint=None)
    training_set = build_training_set(train_card, open_collection(train_card, with_images=with_images))
    if dropped := training_set.facts["queries_without_positive"]:
        request.log_status(f"{card.name}: left out {dropped:,} queries that have no relevant document in the corpus")
    if triples := msmarco_triples.find_triples(path, request.split):
        training_set = msmarco_triples.add_triple_negatives(training_set, triples, negatives_per_query)
        request.log_status(f"{triples.name}: {training_set.facts['negatives']['taken']:,} negatives")
    if request.split == card.split:
        return training_set.with_queries(training_set.queries, evaluated_split=True)
    return training_set


@dataclass(frozen=True)
class UnlabelledTexts:
    """The texts of a corpus, without labels."""

    name: str
    fingerprint: str
    texts: list[str]


def load_unlabelled_texts(request: TrainingRequest) -> UnlabelledTexts:
    """Load the texts of a dataset without its labels."""
    path = Path(request.dataset).expanduser()
    if request.dataset in HUB_CORPORA:
        return UnlabelledTexts(request.dataset, *load_hub_corpus(request.dataset, request.log_status))
    if path.is_file() or request.dataset in HUB_SETS:
        training_set = _read_dataset(request, DEFAULT_NEGATIVES)
        return UnlabelledTexts(training_set.name, training_set.fingerprint, list(training_set.passages))
    card = catalog.find_task_card(request.dataset)
    collection = open_collection(replace(card, fingerprint=None))
    passages = build_training_set(card, collection).passages
    return UnlabelledTexts(card.name, collection.corpus.fingerprint, list(passages))


def iterate_training_texts(request: TrainingRequest) -> Iterator[str]:
    """The queries of a dataset and the passages that belong to them, or its texts; nothing is left out."""
    if request.dataset in HUB_CORPORA:
        yield from load_unlabelled_texts(request).texts
        return
    training_set = _read_dataset(request, DEFAULT_NEGATIVES)
    yield from (query.text for query in training_set.queries)
    rows = {row for query in training_set.queries for row in (*query.positives, *query.negatives)}
    yield from (training_set.passages[row] for row in sorted(rows))


def _iterate_evaluation_queries(request: TrainingRequest, with_images: bool = False) -> Iterator[str]:
    """Queries of the dataset's evaluated split and of the task that is evaluated during training."""
    if request.eval_task:
        yield from _load_query_texts(parse_eval_task(request.eval_task)[0], with_images)
    for card in _list_evaluated_tasks(request):
        try:
            yield from _load_query_texts(card, with_images)
        except (MissingError, UsageError) as problem:  # a task that is not on this machine cannot be compared
            request.log_status(
                f"{card.name}, split {card.split}: leaks into its queries were not checked: {problem.cause}"
            )


def _list_evaluated_tasks(request: TrainingRequest) -> list[TaskCard]:
    if request.dataset in HUB_SETS:
        return [catalog.find_task_card(name) for name in HUB_SETS[request.dataset].evaluation_tasks]
    if Path(request.dataset).is_file():
        return []
    card = catalog.find_task_card(request.dataset)
    if request.split == f"{card.split}/train":
        return [replace(card, split=f"{card.split}/test")]
    return [card] if card.split != request.split else []


def _load_query_texts(card: TaskCard, with_images: bool) -> list[str]:
    return [query.text for query in open_collection(replace(card, fingerprint=None), with_images=with_images).queries]
