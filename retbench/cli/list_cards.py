"""retbench list: what there is, by kind."""

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, left_out, put_json, verb


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    tasks = "tasks"
    suites = "suites"
    methods = "methods"
    recipes = "recipes"
    results = "results"


COLUMNS: dict[Kind, tuple[str, ...]] = {
    Kind.models: ("name", "kind", "specialisation", "parameters", "source", "aliases"),
    Kind.tasks: (
        "name",
        "suite",
        "documents",
        "queries",
        "split",
        "metric",
        "protocol",
        "size",
        "state",
        "license",
    ),
    Kind.suites: ("name", "size", "description"),
    Kind.methods: ("name", "fidelity", "pooling", "title", "paper"),
    Kind.recipes: ("name", "objective", "fidelity", "title"),
    Kind.results: ("suite", "task", "model", "method", "main_score", "settings_id"),
}


@verb
def listing(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    results: Annotated[Path, typer.Option(help="The results folder, for `list results`.")] = Path("results"),
    as_json: AsJson = False,
) -> int:
    """List models, tasks, suites, methods or results."""
    if kind is Kind.results:
        from retbench.pipelines.report import finished

        rows, problems = finished(results)
    else:
        rows, problems = _cards(kind), []
    put_json(rows) if as_json else _table(kind, rows)
    return left_out(problems)


def _table(kind: Kind, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS[kind], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in COLUMNS[kind]))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cards(kind: Kind) -> list[dict[str, Any]]:
    from retbench.cards import catalog

    if kind is Kind.models:
        return [{**asdict(card), "source": _place(card)} for card in catalog.models()]
    if kind is Kind.tasks:
        return [_task(card) for card in catalog.tasks()]
    if kind is Kind.suites:
        return [{**asdict(card), "size": len(card.members())} for card in catalog.suites()]
    if kind is Kind.methods:
        return [asdict(method) for method in catalog.methods()]
    return [asdict(recipe) for recipe in catalog.recipes()]


def _task(card: Any) -> dict[str, Any]:
    """A task card's facts, and what of its collection lies in the cache; a cached one's counts are the real ones."""
    from retbench.corpora.cache_status import stock

    found = stock(card)
    size = f"{found.megabytes:,.1f} MB" if found.bytes else None
    here = {"state": found.state, "cached": found.state == "cached", "megabytes": found.megabytes, "size": size}
    counts = {"documents": found.documents, "queries": found.queries}
    source = card.source.repo or card.source.generator or card.source.url or card.source.kind
    return {**asdict(card), **counts, **here, "source": source}


def _place(card: Any) -> str:
    weights = card.weights
    if weights is None:
        return "none needed"
    return f"{weights.source}: {weights.repo or weights.path or weights.distributions[0]}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list | tuple) else str(value if value is not None else "–")
