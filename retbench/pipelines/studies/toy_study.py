"""A study at toy size: its stages, methods, rerankers and recipes, on random models and collections of twelve texts.

It shows what a plan does without GPUs and without the hub, in minutes. Its scores mean nothing, so every model, task
and suite is called `toy-NAME`: no toy score stands beside a published figure or in the row of a real run. Of each suite
two tasks are kept, of each training two steps.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog, options
from retbench.cards.model import DefaultMethod, ModelCard, WeightsSource
from retbench.cards.recipe_keys import ADAPTOR
from retbench.cards.study import CellSelection, Stage, Study
from retbench.cards.task import SourceSpec, Suite, TaskCard
from retbench.errors import RetbenchError
from retbench.pipelines.studies.requirements import list_local_models
from retbench.pipelines.studies.toy_collections import TEXTS, write_collection, write_file, write_training_data
from retbench.pipelines.studies.toy_weights import write_toy_weights
from retbench.pipelines.studies.training import list_trained_names
from retbench.system.toml_writer import format_card
from retbench.training.hub_corpora import HUB_CORPORA
from retbench.training.hub_datasets import HUB_SETS

PREFIX = "toy-"
TASKS_PER_SUITE = 2
STEPS = 2
ADAPTOR_OPTIONS = ["max_steps=50", "alpha=[0.1]", "beta=[0.01]"]


def open_toy_study(study: Study, out: Path) -> tuple[Study, Path]:
    """Write the toy models, collections and cards below `out`, use them in this process, and return the toy plan.

    Its results are in `out/toy`, and so is its cache: nothing goes into the user's.
    """
    folder = (out / "toy").resolve()
    toy_study = _rename_study(study, folder / "training")
    write_training_data(folder / "training")
    for card in _list_models(study):
        _write_model(card, folder / "cards" / "model_cards", folder / "weights" / card.name)
    for name, tasks in _list_suites(study).items():
        _write_suite(name, tasks, folder)
    write_file(folder / "cards" / "studies" / f"{toy_study.name}.toml", format_card(toy_study))
    others = os.environ.get("RETBENCH_CARDS", "").split(os.pathsep)
    os.environ["RETBENCH_CARDS"] = os.pathsep.join(dict.fromkeys(filter(None, (str(folder / "cards"), *others))))
    os.environ["RETBENCH_CACHE"] = str(folder / "cache")
    for load_cards in (catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites, catalog.load_studies):
        load_cards.cache_clear()
    return toy_study, folder


def _list_models(study: Study) -> list[ModelCard]:
    """The cards of all models whose weights the study loads, without those that it trains."""
    trained = tuple(list_trained_names(study))
    names = dict.fromkeys(name for stage in study.stages for name in list_local_models(stage, stage.models))
    cards = [catalog.find_model_card(name) for name in names if not (trained and name.startswith(trained))]
    return [card for card in cards if card.kind == "backbone"]


def _write_model(card: ModelCard, cards: Path, folder: Path) -> None:
    """Write weights and a card that says how they are read, as the real one does; weights that are here are kept."""
    file = cards / f"{PREFIX}{card.name}.toml"
    if file.exists():
        return
    write_toy_weights(card, [text for row in TEXTS for text in row], folder)
    toy_card = ModelCard(
        f"{PREFIX}{card.name}",
        description=f"{card.name} at toy size, with random weights",
        family=card.family,
        specialisation=card.specialisation,
        context_length=card.context_length,
        max_length=card.max_length,
        dtype="float32",
        weights=WeightsSource("path", path=str(folder)),
        method=card.method or DefaultMethod("mean"),
    )
    write_file(file, format_card(toy_card))


def _list_suites(study: Study) -> dict[str, list[TaskCard]]:
    """The tasks that are kept of every suite of the study, and the tasks that it names by themselves."""
    suites: dict[str, list[TaskCard]] = {}
    for stage in study.stages:
        for name in stage.suites:
            suites[name] = [catalog.find_task_card(task) for task in _choose_tasks(name)]
        for task in stage.tasks:
            card = catalog.find_task_card(task)
            if card not in suites.setdefault(f"{study.name}-tasks", []):
                suites[f"{study.name}-tasks"].append(card)
    return suites


def _choose_tasks(suite: str) -> list[str]:
    return list(catalog.load_suites().find(suite).expand_tasks())[:TASKS_PER_SUITE]


def _write_suite(name: str, tasks: list[TaskCard], folder: Path) -> None:
    """Write the collections of some tasks, and cards with the protocol of the real ones."""
    cards = folder / "cards" / "tasks" / f"{PREFIX}{name}"
    written = {file.stem for file in (folder / "cards" / "tasks").glob("*/*.toml")}
    for card in tasks:
        if f"{PREFIX}{card.name}" in written:  # a task of two suites has one card
            continue
        collection = folder / "collections" / card.name
        write_collection(card, collection)
        source = SourceSpec("folder", path=str(collection))
        toy_card = replace(
            card, name=f"{PREFIX}{card.name}", source=source, suite="custom", aliases=(), collection=None, expected=(),
            fingerprint=None, documents=None, queries=None,
        )  # fmt: skip
        write_file(cards / f"{PREFIX}{card.name}.toml", format_card(toy_card))
    suite = Suite(f"{PREFIX}{name}", tuple(f"{PREFIX}{card.name}" for card in tasks))
    write_file(cards / "suite.toml", format_card(suite))


def _rename_study(study: Study, training: Path) -> Study:
    """The plan with the names of the toy models and tasks, and short trainings."""
    trained = tuple(list_trained_names(study))
    stages = tuple(_rename_rerankers(_rename_stage(stage, training), study.name, trained) for stage in study.stages)
    reproduces = {
        table: {row: _rename_selection(selection) for row, selection in rows.items()}
        for table, rows in study.reproduces.items()
    }
    return replace(study, name=f"{PREFIX}{study.name}", stages=stages, reproduces=reproduces)


def _rename_selection(selection: CellSelection) -> CellSelection:
    model = _rename_model(selection.model) if selection.model else None
    return replace(selection, model=model, also=_rename_selection(selection.also) if selection.also else None)


def _rename_model(name: str) -> str:
    """The toy name of a model with weights; a lexical model needs none and stays."""
    try:
        card = catalog.find_model_card(name)
    except RetbenchError:
        return name
    return f"{PREFIX}{card.name}" if card.kind == "backbone" else name


def _rename_stage(stage: Stage, training: Path) -> Stage:
    models = tuple(_rename_model(name) for name in stage.models)
    suites, tasks = tuple(f"{PREFIX}{name}" for name in stage.suites), tuple(f"{PREFIX}{name}" for name in stage.tasks)
    return replace(stage, models=models, suites=suites, tasks=tasks, options=_shorten_training(stage, training))


def _shorten_training(stage: Stage, training: Path) -> dict[str, Any]:
    """The options of a stage; a training takes two steps, on a file in place of a set of the hub."""
    if stage.verb != "finetune":
        return stage.options
    changes = list(stage.options.get("set", ()))
    if stage.options.get("objective") == ADAPTOR:
        return {**stage.options, "set": [*changes, *ADAPTOR_OPTIONS]}
    changes.append(f"optimizer.max_steps={STEPS}")
    recipe = catalog.find_recipe(str(stage.options["recipe"]))
    if recipe.query_likelihood and "query_likelihood=none" not in changes:
        changes.append(f"query_likelihood.optimizer.max_steps={STEPS}")
    renamed = {**stage.options, "set": changes}
    if dataset := stage.options.get("dataset"):
        is_of_hub = dataset in HUB_SETS or dataset in HUB_CORPORA
        file = training / ("ranked.jsonl" if recipe.listwise else "labelled.jsonl")
        renamed["dataset"] = str(file) if is_of_hub else f"{PREFIX}{dataset}"
    return renamed


def _rename_rerankers(stage: Stage, study: str, trained: tuple[str, ...]) -> Stage:
    """The stage with the toy models in its rerankers; what a server computes stays as it is."""
    rerankers = [_rename_reranker(text, study, trained) for text in stage.options.get("rerank", ())]
    return replace(stage, options={**stage.options, "rerank": rerankers}) if rerankers else stage


def _rename_reranker(text: str, study: str, trained: tuple[str, ...]) -> str:
    name, settings = options.split_options(text)
    model = settings.get("model")
    if model is None or settings.get("engine") == "endpoint":
        return text
    is_trained = bool(trained) and model.startswith(trained)
    toy_model = f"{PREFIX}{model.replace(study, PREFIX + study, 1)}" if is_trained else _rename_model(model)
    return options.join_options(name, {**settings, "model": toy_model})
