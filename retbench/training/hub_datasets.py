"""Training datasets of the Hugging Face hub that are not tasks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retbench.errors import MissingError, RetbenchError
from retbench.system import hub_errors
from retbench.system.installation import suggest_extra
from retbench.training.training_set import TrainingSet, parse_training_rows

HUB_TIMEOUT = 5  # seconds


class HubTrainingSet(NamedTuple):
    """A dataset whose rows hold a query, positive and negative passages.

    Its passages are those of `suite`, which evaluates a model trained on them; `evaluation_tasks` have queries that
    must not be trained on. `collections` are those that the rows are taken from, if it is not one of the same name.
    `substitute` is what can be given where the hub cannot be reached.
    """

    repo: str
    split: str
    suite: str
    evaluation_tasks: tuple[str, ...]
    queries: int  # about, for estimates before the data is here
    substitute: str
    collections: tuple[str, ...] = ()


HUB_SETS = {
    "msmarco": HubTrainingSet(
        "Tevatron/msmarco-passage-aug",
        "train",
        "msmarco-titled",  # its passages have titles too
        (
            *("msmarco-dev-titled", "trec-dl-2019-titled", "trec-dl-2020-titled"),
            *("msmarco-dev", "trec-dl-2019", "trec-dl-2020"),
        ),
        491_000,
        "a folder in MS MARCO's own layout (collection.tsv, queries.train.tsv, qrels.train.tsv)",
    ),
    "e2rank-ranking": HubTrainingSet(
        "Alibaba-NLP/E2Rank_ranking_datasets",
        "train",
        "beir",
        ("trec-dl-2019", "trec-dl-2020", "trec-covid", "nfcorpus", "touche-2020", "dbpedia", "scifact"),
        157_000,
        "its train.jsonl, with lines of query, document, ranking and source",
        ("cmedqav2", "dureader", "hotpotqa", "miracl", "mmarco", "msmarco", "nq", "t2ranking", "triviaqa"),
    ),
}


def is_cached(name: str) -> bool:
    """Whether the library `datasets` has the rows of a hub dataset in its cache; it is not imported for that."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / HUB_SETS[name].repo.replace("/", "___")
    return any(folder.glob("**/*.arrow"))


def list_collections(dataset: str) -> tuple[str, ...]:
    """The collections that a model trained on a dataset has seen."""
    return (HUB_SETS[dataset].collections if dataset in HUB_SETS else ()) or (dataset,)


def require_hub_set(name: str) -> None:
    """Raise if a hub dataset is not in the cache and the hub does not answer.

    Without a network this fails at once, where the library `datasets` tries for a minute.
    """
    if is_cached(name):
        return
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(HUB_SETS[name].repo, timeout=HUB_TIMEOUT)
    except Exception as problem:  # of httpx or httpx2, depending on the hub's version
        raise _build_missing_error(HUB_SETS[name], problem) from problem


def _build_missing_error(source: HubTrainingSet, problem: Exception) -> MissingError:
    hint = f"run it on a machine with a network, copy its datasets cache here, or give {source.substitute}"
    return hub_errors.build_hub_error(source.repo, problem, hint, kind="datasets/")


def load_hub_training_set(name: str) -> TrainingSet:
    """Load a hub dataset by its short name; a cached one needs no network."""
    source = HUB_SETS[name]
    require_hub_set(name)
    try:
        import datasets
    except ImportError as problem:
        next_step = f"{suggest_extra('train')}, or give a folder or a jsonl file"
        raise MissingError(f"{source.repo} needs the package datasets", next_step) from problem
    try:
        rows = datasets.load_dataset(source.repo, split=source.split)
    except RetbenchError:
        raise
    except Exception as problem:  # datasets has no common error class; any error means the data is not here
        raise _build_missing_error(source, problem) from problem
    return parse_training_rows(name, _number_rows(source.repo, rows))


def _number_rows(repo: str, rows: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{repo} row {number}", row) for number, row in enumerate(rows))
