"""Slots: the cells a study asks for, known before anything is fetched, and what stands in the way of each."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retbench.cards import catalog
from retbench.cards.default_methods import resolve_methods
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError
from retbench.pipelines.evaluation.request import Request
from retbench.store.digest import compute_digest

VERBS = {  # the verbs a stage can have, and the options each takes; sample and set are the stage's own
    "run": {"rerank", "engine", "weights"},
    "finetune": {"dataset", "recipe", "objective", "set", "split", "seeds"},
}
ADAPTOR = "adaptor"
T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """One cell of a study."""

    study: str
    stage: str
    model: str
    method: str
    task: str
    argument: str  # the task as the plan calls it: a name, an alias or a folder
    needs: str | None = None  # what must be there first
    seed: int | None = None  # of a training
    asked: str = ""  # the digest of what else the stage says: another sample is another measurement

    def note(self, out: Path) -> Path:
        """Where a results folder keeps what became of it."""
        seed = [] if self.seed is None else [self.seed]
        name = compute_digest([self.stage, self.model, self.method, self.task, *seed])[:16]
        return out / "studies" / self.study / f"{name}.json"


def slots(plan: Study, stage: Stage) -> Iterator[Slot]:
    """The cells of a stage, in the order they are run: a whole seed before the next one."""
    blocked, asked, tasks = _blocked(stage), _asked(stage), _tasks(stage)
    for seed, model in itertools.product(stage.options.get("seeds", (None,)), stage.models):
        card, kind = _known(catalog.find_model_card, model), "the method" if stage.verb == "run" else "the recipe"
        for method, found in _methods(stage, card):
            for argument, name, lacks in tasks:
                missing = [f"the model {model}"] * (card is None) + [f"{kind} {method}"] * (not found)
                needs = blocked or missing + lacks
                reason = f"needs {', '.join(needs)}" if needs else None
                yield Slot(plan.name, stage.name, model, method, name, argument, reason, seed, asked)


def unasked(stage: Stage, only: str | None) -> str | None:
    """Why an optional stage is left out."""
    return f"run when asked for: --stage {stage.name}" if stage.optional and only != stage.name else None


def _blocked(stage: Stage) -> list[str]:
    """What the whole stage needs and this version does not have."""
    if stage.verb not in VERBS:
        return [f"`retbench {stage.verb}`"]
    known = VERBS[stage.verb]
    return [
        f"an option {name!r} ({stage.verb} has {', '.join(sorted(known))})"
        for name in stage.options
        if name not in known
    ]


def _asked(stage: Stage) -> str:
    """What decides a cell's score beside the slot itself; a seed more changes no other seed's."""
    options = {name: value for name, value in stage.options.items() if name != "seeds"}
    return compute_digest([stage.sample, stage.set, options])[:12]


def _tasks(stage: Stage) -> list[tuple[str, str, list[str]]]:
    """Every task of a stage, each once: what the plan calls it, its name and what it lacks.

    Records and trained models are kept by the task's name, so a second task of one name would be taken for the first.
    """
    arguments: list[str] = []
    for suite_name in stage.suites:
        suite = _known(catalog.load_suites().find, suite_name)
        arguments += suite.expand_tasks() if suite else [suite_name]
    owner: dict[str, str] = {}
    tasks = []
    for argument in dict.fromkeys([*arguments, *stage.tasks]):
        card = _known(catalog.find_task_card, argument)
        name = card.name if card else argument  # what no card knows keeps the name it was given
        first = owner.setdefault(name, argument)
        lacks = [f"the task {argument}"] * (card is None)
        lacks += [f"another name for {argument}: {first} is {name} too"] * (first != argument)
        tasks.append((argument, name, lacks))
    return tasks


def _methods(stage: Stage, card: ModelCard | None) -> list[tuple[str, bool]]:
    """The methods of a model by name, and whether each is known; those of `finetune` come with its recipe."""
    if stage.options.get("objective") == ADAPTOR:
        return [(ADAPTOR, True)]
    if stage.verb != "run":
        recipe = str(stage.options.get("recipe", stage.verb))
        return [(recipe, stage.verb not in VERBS or _known(catalog.find_recipe, recipe) is not None)]
    if card is None:
        return [(name, True) for name in stage.methods or ("-",)]
    wanted = {name: _known(catalog.find_method, name) for name in stage.methods}
    found: list[Method] = [method for method in wanted.values() if method]
    usable = resolve_methods(card, found) if found or not wanted else []
    return [(method.name, True) for method in usable] + [(name, False) for name, one in wanted.items() if not one]


def _known(find: Callable[[str], T], name: str) -> T | None:
    try:
        return find(name)
    except RetbenchError:
        return None


def request(stage: Stage, model: str, method: str, tasks: tuple[str, ...], **rest: Any) -> Request:
    """A model's row of slots as the request it stands for."""
    cards = [_known(catalog.find_method, name) for name in stage.methods]
    methods = (method,) if method in [card.name for card in cards if card] else ()  # a lexical model's is no card's
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stage.options.items()
    }
    return Request((model,), tasks, methods, sample=stage.sample, overrides=stage.set, **options, **rest)
