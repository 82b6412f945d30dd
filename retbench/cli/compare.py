"""retbench compare: two runs, their settings and their scores."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result

Side = "A run's folder or settings-id, an mteb result file (.json), or a TREC run."


@cli_command
def compare(
    a: Annotated[str, typer.Argument(help=Side)],
    b: Annotated[str, typer.Argument(help=Side)],
    results: Annotated[Path, typer.Option(help="The results folder, for settings-ids.")] = Path("results"),
    task: Annotated[
        str | None, typer.Option(help="The collection of a TREC run: a task card or a BEIR folder.")
    ] = None,
    queries: Annotated[int, typer.Option(help="How many of the queries that moved most are shown.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: every differing setting, then the scores with their test, then the queries that moved."""
    from retbench.pipelines.runs.compare import compare as story
    from retbench.reports.comparison import text

    found = story(a, b, results, task, queries)
    print_json(asdict(found)) if as_json else print_result(text(found))
