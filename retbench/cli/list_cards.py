"""retbench list: all models, tasks, suites, methods, prompt sets, recipes, studies or results."""

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.cells import format_method
from retbench.cli.command import AsJson, RunsFolder, cli_command, find_kind, print_json, print_skipped, print_status
from retbench.cli.terminal_table import Column, Kind, describe_hidden, print_table

if TYPE_CHECKING:
    from retbench.cards.model import ModelCard
    from retbench.cards.task import TaskCard


class ListKind(StrEnum):
    """A kind of object to list."""

    models = "models"
    tasks = "tasks"
    suites = "suites"
    methods = "methods"
    prompts = "prompts"
    recipes = "recipes"
    studies = "studies"
    results = "results"


COLUMNS: dict[ListKind, tuple[str, ...]] = {
    ListKind.models: ("name", "parameters", "kind", "specialisation", "source", "aliases"),
    ListKind.tasks: (
        "name",
        "documents",
        "queries",
        "state",
        "suite",
        "size",
        "metric",
        "split",
        "protocol",
        "license",
    ),
    ListKind.suites: ("name", "size", "description"),
    ListKind.methods: ("name", "fidelity", "pooling", "title", "paper"),
    ListKind.prompts: ("name", "prompts", "title"),
    ListKind.recipes: ("name", "objective", "fidelity", "title"),
    ListKind.studies: ("name", "stages", "title", "paper"),
    ListKind.results: ("suite", "task", "model", "method", "main_score", "settings_id", "split", "sample"),
}


def _complete(incomplete: str) -> list[str]:
    return [kind for kind in ListKind if kind.startswith(incomplete)]


@cli_command
def list_cards(
    kind_name: Annotated[
        str, typer.Argument(metavar="kind", help=f"What to list: {', '.join(ListKind)}.", autocompletion=_complete)
    ],
    results: RunsFolder,
    as_json: AsJson = False,
) -> int:
    """List models, tasks, suites, methods, prompts, recipes, studies or results."""
    kind = find_kind(kind_name, ListKind)
    if kind is ListKind.results:
        from retbench.pipelines.report import list_finished_cells

        cells, problems = list_finished_cells(results)
        rows = [cell.to_json() if as_json else {**cell.to_json(), "method": format_method(cell)} for cell in cells]
    else:
        rows, problems = _load_rows(kind), []
    print_json(rows) if as_json else _print_table(kind, rows)
    return print_skipped(problems)


def _print_table(kind: ListKind, rows: list[dict[str, Any]]) -> None:
    """Print the columns of COLUMNS; those at its end find no room first."""
    columns = [
        Column(head, [_format_value(row.get(head)) for row in rows], room, _choose_column_kind(rows, head))
        for room, head in enumerate(COLUMNS[kind])
    ]
    if hidden := print_table(columns):
        print_status(describe_hidden(hidden, "a wider terminal or --json has them"))


def _choose_column_kind(rows: list[dict[str, Any]], head: str) -> Kind:
    """Choose what may be cut; what is typed in a command stays whole."""
    values = [row[head] for row in rows if row.get(head) is not None]
    if values and all(isinstance(value, int | float) for value in values):
        return "number"
    if head in ("title", "description", "paper"):
        return "prose"
    return "text" if head in ("name", "settings_id") else "name"


def _load_rows(kind: ListKind) -> list[dict[str, Any]]:
    from retbench.cards import catalog

    if kind is ListKind.models:
        return [{**asdict(card), "source": _format_weights_source(card)} for card in catalog.load_model_cards()]
    if kind is ListKind.tasks:
        return [_build_task_row(card) for card in catalog.load_task_cards()]
    if kind is ListKind.suites:
        return [{**asdict(card), "size": len(card.expand_tasks())} for card in catalog.load_suites()]
    if kind is ListKind.prompts:
        sets = catalog.load_prompt_sets()
        return [{**asdict(one), "prompts": [prompt.name for prompt in one.prompts]} for one in sets]
    if kind is ListKind.studies:
        return [{**asdict(study), "stages": len(study.stages)} for study in catalog.load_studies()]
    cards = catalog.load_methods() if kind is ListKind.methods else catalog.load_recipes()
    return [asdict(card) for card in cards]


def _build_task_row(card: "TaskCard") -> dict[str, Any]:
    """Build the row of a task: its card, its cached state, and the actual counts if it is cached."""
    from retbench.corpora.cache_status import get_cache_status

    status = get_cache_status(card)
    size = f"{status.megabytes:,.1f} MB" if status.bytes else None
    cache_state = {
        "state": status.state,
        "cached": status.state == "cached",
        "megabytes": status.megabytes,
        "size": size,
    }
    counts = {"documents": status.documents, "queries": status.queries}
    source = card.source.repo or card.source.generator or card.source.url or card.source.kind
    return {**asdict(card), **counts, **cache_state, "source": source}


def _format_weights_source(card: "ModelCard") -> str:
    weights = card.weights
    if weights is None:
        return "none needed"
    return f"{weights.source}: {weights.repo or weights.path or weights.distributions[0]}"


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list | tuple) else str(value if value is not None else "–")
