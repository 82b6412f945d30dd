"""The cells of a study, listed before anything is fetched, each with what it needs but cannot find."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from retbench.cards import catalog
from retbench.cards.default_methods import resolve_methods
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.recipe_keys import ADAPTOR, restore_key
from retbench.cards.study import Stage, Study
from retbench.engines.weights import find_described_card
from retbench.errors import RetbenchError, UsageError
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.store.digest import compute_digest
from retbench.system.user_config import encode_path_part

VERB_OPTIONS = {  # the verbs of a stage and their options; sample and set are fields of the stage
    "run": {"rerank", "engine", "weights"},
    "finetune": {"dataset", "recipe", "objective", "set", "split", "seeds"},
}
T = TypeVar("T")


@dataclass(frozen=True)
class StudyCell:
    """One cell of a study: a model and a method, or a training, on one task."""

    study: str
    stage: str
    model: str
    method: str
    task: str
    argument: str  # the task as written in the study: a name, an alias or a folder
    needs: str | None = None  # what is missing, as a message
    seed: int | None = None  # of a training
    settings_digest: str = ""  # digest of the stage's other settings: another sample is another measurement

    def get_note_path(self, out: Path) -> Path:
        """The file in a results folder with this cell's status."""
        seed = [] if self.seed is None else [self.seed]
        name = compute_digest([self.stage, self.model, self.method, self.task, *seed])[:16]
        return out / "studies" / encode_path_part(self.study) / f"{name}.json"

    def to_json(self) -> dict[str, Any]:
        """The cell with the keys of stored notes and `--json`."""
        facts = asdict(self)
        facts["asked"] = facts.pop("settings_digest")
        return facts


def list_study_cells(study: Study, stage: Stage) -> Iterator[StudyCell]:
    """The cells of a stage in the order in which they run: all cells of a seed before the next seed."""
    missing_features, tasks = _list_missing_features(stage), _resolve_tasks(stage)
    settings_digest = _digest_stage_settings(stage)
    method_word = "the method" if stage.verb == "run" else "the recipe"
    for seed, model in itertools.product(stage.options.get("seeds", (None,)), stage.models):
        card = _find_or_none(find_described_card, model)
        for method, is_known in _resolve_stage_methods(stage, card):
            for argument, name, missing_task in tasks:
                missing_cards = [f"the model {model}"] * (card is None) + [f"{method_word} {method}"] * (not is_known)
                missing = missing_features or missing_cards + missing_task
                reason = f"needs {', '.join(missing)}" if missing else None
                yield StudyCell(study.name, stage.name, model, method, name, argument, reason, seed, settings_digest)


def select_stages(study: Study, stage_name: str | None) -> tuple[Stage, ...]:
    """All stages, or only the named one."""
    stages = tuple(stage for stage in study.stages if stage_name in (None, stage.name))
    if not stages:
        names = ", ".join(stage.name for stage in study.stages)
        raise UsageError(f"{study.name} has no stage {stage_name!r}", f"choose one of its stages: {names}")
    return stages


def group_cells(study: Study, stage: Stage) -> Iterator[list[StudyCell]]:
    """Group the cells by model, method and seed, so that each model is loaded once."""

    def build_group_key(cell: StudyCell) -> tuple[Any, ...]:
        return (cell.seed, cell.model, cell.method, cell.argument if stage.trains_per_task else None)

    for _, cells in itertools.groupby(list_study_cells(study, stage), key=build_group_key):
        yield list(cells)


def explain_optional_stage(stage: Stage, stage_name: str | None) -> str | None:
    """Why an optional stage is skipped; None if it runs."""
    return f"optional stage, run it with --stage {stage.name}" if stage.optional and stage_name != stage.name else None


def _list_missing_features(stage: Stage) -> list[str]:
    """The verb or options of a stage that this version of retbench does not have."""
    if stage.verb not in VERB_OPTIONS:
        return [f"`retbench {stage.verb}`"]
    options = VERB_OPTIONS[stage.verb]
    return [
        f"an option {name!r} ({stage.verb} has {', '.join(sorted(options))})"
        for name in stage.options
        if name not in options
    ]


def _digest_stage_settings(stage: Stage) -> str:
    """Hash the stage's settings that change a score; seeds are left out, so that a new seed keeps the others valid."""
    options = {name: value for name, value in stage.options.items() if name != "seeds"}
    if stage.verb == "finetune" and isinstance(options.get("set"), list):
        options["set"] = [_restore_recipe_key(change, options.get("objective")) for change in options["set"]]
    return compute_digest([stage.sample, stage.set, options])[:12]


def _restore_recipe_key(change: str, objective: str | None) -> str:
    """A recipe option under its key before the renaming, so that notes written then stay valid."""
    key, equals, value = change.partition("=")
    return restore_key(key, ADAPTOR if objective == ADAPTOR else "") + equals + value


def _resolve_tasks(stage: Stage) -> list[tuple[str, str, list[str]]]:
    """The tasks of a stage without duplicates: as written in the study, the task's name, and what is missing.

    Records and trained models are stored by the task's name, so two different tasks of one name would be mixed up.
    """
    arguments: list[str] = []
    for suite_name in stage.suites:
        suite = _find_or_none(catalog.load_suites().find, suite_name)
        arguments += suite.expand_tasks() if suite else [suite_name]
    argument_by_name: dict[str, str] = {}
    tasks = []
    for argument in dict.fromkeys([*arguments, *stage.tasks]):
        card = _find_or_none(catalog.find_task_card, argument)
        name = card.name if card else argument  # a task without a card keeps the name from the study
        first_argument = argument_by_name.setdefault(name, argument)
        missing = [f"the task {argument}"] * (card is None)
        missing += [f"another name for {argument}: {first_argument} is also called {name}"] * (
            first_argument != argument
        )
        tasks.append((argument, name, missing))
    return tasks


def _resolve_stage_methods(stage: Stage, card: ModelCard | None) -> list[tuple[str, bool]]:
    """The names of a model's methods, and whether each exists; for `finetune` the name of the recipe."""
    if stage.options.get("objective") == ADAPTOR:
        return [(ADAPTOR, True)]
    if stage.verb != "run":
        recipe = str(stage.options.get("recipe", stage.verb))
        return [(recipe, stage.verb not in VERB_OPTIONS or _find_or_none(catalog.find_recipe, recipe) is not None)]
    if card is None:
        return [(name, True) for name in stage.methods or ("-",)]
    methods_by_name = {name: _find_or_none(catalog.find_method, name) for name in stage.methods}
    known_methods: list[Method] = [method for method in methods_by_name.values() if method]
    model_methods = resolve_methods(card, known_methods) if known_methods or not methods_by_name else []
    return [(method.name, True) for method in model_methods] + [
        (name, False) for name, method in methods_by_name.items() if not method
    ]


def _find_or_none(find: Callable[[str], T], name: str) -> T | None:
    try:
        return find(name)
    except RetbenchError:
        return None


def build_request(stage: Stage, model: str, method: str, tasks: tuple[str, ...], **rest: Any) -> EvaluationRequest:
    """The evaluation request for the cells of one model and method."""
    cards = [_find_or_none(catalog.find_method, name) for name in stage.methods]
    methods = (
        (method,) if method in [card.name for card in cards if card] else ()
    )  # a lexical model's method has no card
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stage.options.items()
    }
    return EvaluationRequest((model,), tasks, methods, sample=stage.sample, overrides=stage.set, **options, **rest)
