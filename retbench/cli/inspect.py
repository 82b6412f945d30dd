"""retbench inspect: the queries a run answers worst."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result


@cli_command
def inspect(
    run: Annotated[str, typer.Argument(help="A run's folder or the beginning of its settings-id.")],
    results: Annotated[Path, typer.Option(help="The results folder, for a settings-id.")] = Path("results"),
    query: Annotated[str | None, typer.Option(help="Only this query.")] = None,
    queries: Annotated[int, typer.Option(help="How many of the worst queries are shown.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a run's worst queries: what was ranked, what was relevant, and at which rank it stood."""
    from retbench.pipelines.runs import inspect as story

    found = story.inspect(run, results, query, queries)
    print_json(found.json()) if as_json else print_result(story.text(found))
