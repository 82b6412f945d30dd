"""The study: a plan of models, methods and tasks in stages, with its questions and the published tables beside it.

A stage names a verb of retbench and what the verb takes. A stage whose verb, option, method or card is not there is
told as skipped, with what it needs; the rest of the study runs.

A stage of `finetune` trains each model once and scores what came out: on `options.dataset`, or, where there is none,
on the train split of each task for that task alone; by `options.recipe`, or an adaptor with `objective = "adaptor"`;
with every seed of `options.seeds`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One step: every model with every method on every task."""

    name: str
    models: tuple[str, ...]
    verb: str = "run"
    title: str | None = None
    suites: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sample: int | None = None
    set: dict[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()  # stages whose rows stand in this one's tables too
    optional: bool = False  # run only when the stage is named
    options: dict[str, Any] = field(default_factory=dict)  # what else the verb takes, by its own names

    @property
    def trains_per_task(self) -> bool:
        """Whether each task has a model of its own, trained on its own train split."""
        return self.verb == "finetune" and "dataset" not in self.options


@dataclass(frozen=True)
class Study:
    """A plan. `references` are published tables (`retbench report --table`) its own tables stand beside."""

    name: str
    title: str
    stages: tuple[Stage, ...]
    paper: str | None = None
    questions: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()  # where the plan is not what the paper did
