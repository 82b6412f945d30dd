"""What a model is to learn: the wish as it was typed, and its data with leaks taken out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog, options
from retbench.cards.recipe import Recipe
from retbench.cards.task import TaskCard
from retbench.corpora.open_collection import open_collection
from retbench.errors import MissingError, UsageError
from retbench.records.phase_timer import Show, Silent
from retbench.training import leaks, msmarco_triples
from retbench.training.hub_datasets import HUB_SETS, load_hub_training_set
from retbench.training.training_set import TrainingSet, build_training_set, read_training_file


@dataclass(frozen=True)
class TrainingRequest:
    """What the user asked for. `examined` are tasks scored on the way, `task` or `task:split=dev,sample=100`."""

    dataset: str
    model: str
    recipe: Recipe
    name: str | None = None
    out: Path | None = None
    split: str = "train"
    eval_task: str | None = None
    export: str | None = None
    report_to: tuple[str, ...] = ()
    resume: bool = False
    force: bool = False
    show: Show = field(default_factory=Silent)
    say: Callable[[str], None] = lambda _: None
    report: Callable[[dict[str, Any]], None] = lambda _: None
    command: str = "retbench.finetune(...)"


def parse_eval_task(word: str) -> tuple[TaskCard, int | None]:
    """The task scored on the way, and how many of its queries."""
    name, wanted = options.split_options(word)
    size = wanted.pop("sample", None)
    if size is not None and not (size.isdecimal() and int(size)):
        raise UsageError(f"{word}: sample={size} draws nothing", "give a number of queries, 1 or more")
    card = options.apply_options(catalog.find_task_card(name), wanted, fixed=("name", "source"))
    return replace(card, fingerprint=None), int(size) if size else None


def load_training_set(wish: TrainingRequest) -> TrainingSet:
    """Queries and their passages, without any query that is asked in an evaluation."""
    whole = _read_dataset(wish)
    kept = leaks.remove_leaked_queries(whole, _iterate_evaluation_queries(wish))
    wish.say(
        f"{whole.name}: {len(kept.queries):,} queries, {len(whole.passages):,} passages; "
        f"{kept.facts['leaked_queries_removed']} queries ({kept.facts['leaked_texts']} texts) "
        "of an evaluation taken out"
    )
    return kept


def _read_dataset(wish: TrainingRequest) -> TrainingSet:
    path = Path(wish.dataset).expanduser()
    if path.is_file():
        return read_training_file(path)
    if wish.dataset in HUB_SETS:
        return load_hub_training_set(wish.dataset)
    if path.suffix in (".jsonl", ".gz"):
        raise MissingError(f"there is no file {wish.dataset}", "name a jsonl file, a folder or a task")
    card = catalog.find_task_card(wish.dataset)
    if wish.split == card.split and not wish.force:
        raise UsageError(
            f"{card.name} is evaluated on its split {card.split!r}: training on it would spoil every score",
            "train on another split, or add --force to have the model's card say so",
        )
    learned = replace(card, split=wish.split, fingerprint=None)
    made = build_training_set(learned, open_collection(learned))
    if lost := made.facts["queries_without_positive"]:
        wish.say(f"{card.name}: {lost:,} queries have no relevant document in the corpus and are left out")
    if own := msmarco_triples.find_triples(path, wish.split):
        made = msmarco_triples.add_triple_negatives(made, own, wish.recipe.mining.negatives_per_query)
        wish.say(f"{own.name}: {made.facts['negatives']['taken']:,} negatives")
    return made.with_queries(made.queries, evaluated_split=True) if wish.split == card.split else made


def load_unlabelled_texts(wish: TrainingRequest) -> tuple[str, str, list[str]]:
    """Name, fingerprint and texts of a raw corpus; of a task, its documents alone."""
    path = Path(wish.dataset).expanduser()
    if path.is_file() or wish.dataset in HUB_SETS:
        found = _read_dataset(wish)
        return found.name, found.fingerprint, list(found.passages)
    card = catalog.find_task_card(wish.dataset)
    collection = open_collection(replace(card, fingerprint=None))
    return card.name, collection.corpus.fingerprint, list(build_training_set(card, collection).passages)


def _iterate_evaluation_queries(wish: TrainingRequest) -> Iterator[str]:
    """The queries of the set's own evaluated split, and of the task scored on the way."""
    if wish.eval_task:
        yield from _load_query_texts(parse_eval_task(wish.eval_task)[0])
    if wish.dataset in HUB_SETS:
        others = [catalog.find_task_card(name) for name in HUB_SETS[wish.dataset].evaluation_tasks]
    else:
        own = None if Path(wish.dataset).is_file() else catalog.find_task_card(wish.dataset)
        others = [own] if own and own.split != wish.split else []
    for card in others:
        try:
            yield from _load_query_texts(card)
        except (MissingError, UsageError) as problem:  # what is not here cannot be compared, and that is said
            wish.say(f"{card.name}, split {card.split}: its queries were not compared: {problem.cause}")


def _load_query_texts(card: TaskCard) -> list[str]:
    return [query.text for query in open_collection(replace(card, fingerprint=None)).queries]
