"""What a study needs and this machine lacks: weights, collections, training data, memory, a server and its key.

Nothing is fetched and no model is loaded; torch is not imported.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.engine import parse_engine
from retbench.cards.model import ModelCard
from retbench.cards.reranker_settings import parse_reranker
from retbench.cards.study import Stage, Study
from retbench.corpora.cache_status import get_cache_status
from retbench.engines import weights
from retbench.engines.http_client import ADDRESS_VARIABLE, KEY_VARIABLE
from retbench.engines.weight_sizes import BYTES_PER_WEIGHT
from retbench.errors import RetbenchError
from retbench.pipelines.studies.cells import StudyCell, list_study_cells
from retbench.pipelines.studies.cost import measure_card
from retbench.pipelines.studies.training import list_trained_names
from retbench.training.hub_corpora import HUB_CORPORA, find_snapshot
from retbench.training.hub_datasets import HUB_SETS, is_cached


@dataclass(frozen=True)
class MissingItem:
    """One thing that is not on this machine. `fetch` is its name for `retbench fetch`, if it has one."""

    kind: str  # weights, collection, training data, memory, endpoint, plan
    name: str
    detail: str = ""
    fetch: str | None = None

    def describe(self) -> str:
        """The item in a few words."""
        return f"{self.kind} {self.name}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class LocalFiles:
    """Which weights and collections are on this machine; each is looked up once."""

    missing_weights: dict[str, MissingItem | None] = field(default_factory=dict)
    missing_collections: dict[str, MissingItem | None] = field(default_factory=dict)

    def find_missing_weights(self, model: str) -> MissingItem | None:
        """The weights of a model, if they are not here."""
        if model not in self.missing_weights:
            self.missing_weights[model] = _find_missing_weights(model)
        return self.missing_weights[model]

    def find_missing_collection(self, cell: StudyCell) -> MissingItem | None:
        """The collection of a cell, if it is not here."""
        if cell.needs:  # the plan itself is wrong
            return None
        if cell.argument not in self.missing_collections:
            self.missing_collections[cell.argument] = _find_missing_collection(cell.argument)
        return self.missing_collections[cell.argument]


def list_missing_items(study: Study) -> list[MissingItem]:
    """Everything that the study needs and this machine lacks, each once."""
    files, trained_here = LocalFiles(), tuple(list_trained_names(study))
    items: list[MissingItem | None] = []
    for stage in study.stages:
        cells = list(list_study_cells(study, stage))
        items += [MissingItem("plan", stage.name, cell.needs) for cell in cells if cell.needs]
        models = [name for name in list_local_models(stage, stage.models) if not name.startswith(trained_here or "/")]
        items += map(files.find_missing_weights, models)
        items += map(files.find_missing_collection, cells)
        items += _find_missing_training_data(stage)
        items += _find_missing_endpoint(stage)
    return [item for item in dict.fromkeys(items) if item]


def list_fetchable_names(study: Study) -> list[str]:
    """Every model and task of the study that `retbench fetch` can get."""
    cards = [_find_card(name) for stage in study.stages for name in list_local_models(stage, stage.models)]
    models = [card.name for card in cards if card and card.weights and card.weights.source != "path"]
    tasks = [cell.task for stage in study.stages for cell in list_study_cells(study, stage)]
    return list(dict.fromkeys([*models, *(name for name in tasks if name in catalog.load_task_cards())]))


def list_local_models(stage: Stage, models: tuple[str, ...]) -> list[str]:
    """The models whose weights a stage loads here: of its own models these, and those of its rerankers."""
    settings = [parse_reranker(argument).settings for argument in stage.options.get("rerank", ())]
    rerankers = [
        getattr(setting, "model", None) for setting in settings if getattr(setting, "engine", "") != "endpoint"
    ]
    is_served = parse_engine(stage.options.get("engine", "transformers")).name == "endpoint"
    return list(dict.fromkeys([*(() if is_served else models), *filter(None, rerankers)]))


def uses_endpoint(stage: Stage) -> bool:
    """Whether a server computes a part of the stage."""
    settings = [parse_reranker(argument).settings for argument in stage.options.get("rerank", ())]
    engines = [getattr(setting, "engine", "") for setting in settings]
    return "endpoint" in [*engines, parse_engine(stage.options.get("engine", "transformers")).name]


def read_device_memory() -> tuple[str, float]:
    """The device that computes and its memory in bytes: the largest GPU, else this machine's memory."""
    command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        answer = None
    if answer and answer.returncode == 0 and answer.stdout.strip():
        megabytes, _, name = max(answer.stdout.strip().splitlines(), key=_read_megabytes).partition(",")
        return name.strip(), float(megabytes) * 2**20
    return "the CPU", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read_megabytes(line: str) -> float:
    return float(line.partition(",")[0])


def _find_card(name: str) -> ModelCard | None:
    try:
        return catalog.find_model_card(name)
    except RetbenchError:
        return None


def _find_missing_weights(name: str) -> MissingItem | None:
    card = _find_card(name)
    if card is None:
        return MissingItem("weights", name, "no card of that name: an earlier stage trains it, or it is misspelt")
    if card.kind == "lexical":
        return None
    try:
        if weights.find_local_weights(card) is not None:
            return None
    except RetbenchError as error:
        return MissingItem("weights", card.name, error.cause)
    size, parameters = card.weights.megabytes if card.weights else None, measure_card(card.name).parameters
    if size is None and parameters:
        size = parameters * BYTES_PER_WEIGHT[card.dtype or "bfloat16"] / 1e6
    return MissingItem("weights", card.name, f"about {size / 1000:.1f} GB" if size else "", card.name)


def _find_missing_collection(argument: str) -> MissingItem | None:
    status = get_cache_status(catalog.find_task_card(argument))
    if status.state != "missing":
        return None
    detail = f"{status.documents:,} documents" if status.documents else ""
    return MissingItem("collection", status.task, detail, status.task)


def _find_missing_training_data(stage: Stage) -> Iterator[MissingItem]:
    dataset = str(stage.options.get("dataset", ""))
    if dataset in HUB_SETS and not is_cached(dataset):
        yield MissingItem("training data", dataset, f"{HUB_SETS[dataset].repo}; the first training fetches it")
    elif dataset in HUB_CORPORA and not find_snapshot(dataset).is_fetched():
        yield MissingItem("training data", dataset, f"{HUB_CORPORA[dataset].repo}; the first training fetches it")
    elif dataset in catalog.load_task_cards():
        if item := _find_missing_collection(dataset):
            yield item
    elif dataset.endswith((".jsonl", ".gz")) and not Path(dataset).expanduser().is_file():
        yield MissingItem("training data", dataset, "there is no such file")


def _find_missing_endpoint(stage: Stage) -> Iterator[MissingItem]:
    if uses_endpoint(stage):
        if not os.environ.get(ADDRESS_VARIABLE):
            yield MissingItem("endpoint", ADDRESS_VARIABLE, "the address of an OpenAI-compatible server, with /v1")
        if not os.environ.get(KEY_VARIABLE):
            yield MissingItem("endpoint", KEY_VARIABLE, "its key, if it asks for one")
