"""The study: a plan of models, methods and tasks in stages, with its questions and published tables to compare with.

A stage has a verb of retbench and the verb's options. If its verb, option, method or card does not exist, the stage
is skipped with a reason, and the rest of the study runs.

A stage with the verb `finetune` trains each model and evaluates the result. It trains on `options.dataset`; without
one, it trains one model per task on that task's train split. The recipe is `options.recipe`, or an adaptor with
`objective = "adaptor"`. It trains once for every seed in `options.seeds`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar


@dataclass(frozen=True)
class Stage:
    """One step: every model with every method on every task."""

    renamed_fields: ClassVar = {"beside": "compare_with"}

    name: str
    models: tuple[str, ...]
    verb: str = "run"
    title: str | None = None
    suites: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sample: int | None = None
    set: dict[str, Any] = field(default_factory=dict)
    compare_with: tuple[str, ...] = ()  # other stages whose rows are shown in this stage's tables
    optional: bool = False  # run only with --stage
    options: dict[str, Any] = field(default_factory=dict)  # other options of the verb

    @property
    def trains_per_task(self) -> bool:
        """Whether one model is trained per task, on the task's train split."""
        return self.verb == "finetune" and "dataset" not in self.options


@dataclass(frozen=True)
class CellSelection:
    """The cells of a plan that stand beside one published row: those of a stage, or of one model or method in it.

    Beside a published gain (`measures = "gain"` in the table) stands their score minus that of the stage `minus`, with
    the same model. `also` is a second stage of the same row, with other tasks and the same model.
    """

    stage: str
    model: str | None = None
    method: str | None = None
    minus: str | None = None
    also: "CellSelection | None" = None

    def list_parts(self) -> list["CellSelection"]:
        """This selection, and the second stage with the model and method of this one."""
        if self.also is None:
            return [self]
        model, method = self.also.model or self.model, self.also.method or self.method
        return [self, *replace(self.also, model=model, method=method).list_parts()]


@dataclass(frozen=True)
class Study:
    """A plan. Its report shows the published tables in `references` (`retbench report --table`) for comparison.

    `reproduces` says which cells stand beside which published figures: a table's name, a row's name, the cells.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    paper: str | None = None
    questions: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    reproduces: dict[str, dict[str, CellSelection]] = field(default_factory=dict)
    departures: tuple[str, ...] = ()  # differences from the paper
