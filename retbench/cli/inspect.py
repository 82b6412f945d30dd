"""retbench inspect: shows the queries with the worst scores of a run."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, RunName, RunsFolder, RunTask, cli_command, print_json, print_result


@cli_command
def inspect(
    run: RunName,
    results: RunsFolder,
    task: RunTask = None,
    query: Annotated[str | None, typer.Option(help="Show only the query with this id.")] = None,
    queries: Annotated[int, typer.Option(help="The number of queries to show, worst first.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a run's worst queries: the ranked documents, the relevant documents, and their ranks."""
    from retbench.pipelines.runs.inspect import format_inspection, inspect_run

    inspection = inspect_run(run, results, query, queries, task)
    print_json(inspection.to_json()) if as_json else print_result(format_inspection(inspection))
