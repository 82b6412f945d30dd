"""retbench fetch: download weights and collections, so that a run needs no network."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_error, print_json, print_result, print_status
from retbench.errors import PARTLY_DONE, RetbenchError, UsageError


@cli_command
def fetch(
    name: Annotated[list[str] | None, typer.Argument(help="Models, tasks or suites.")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Fetch nothing; list what is cached, its size, and what is missing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Download weights and collections into the cache, with checksums. Cached files are not fetched again."""
    from retbench.pipelines import fetch as fetch_pipeline

    if not name and not list_:
        raise UsageError("nothing to fetch", "give models, tasks or suites, or --list")
    rows = (
        fetch_pipeline.list_cached(name or [])
        if list_
        else [row for argument in name or [] for row in fetch_pipeline.fetch_by_name(argument, print_status)]
    )
    failed = [row for row in rows if "error" in row]
    if as_json:
        print_json(rows)
    else:
        print_result("\n".join(map(fetch_pipeline.format_row, rows)))
        for cause, step in dict.fromkeys((row["error"], row["next_step"]) for row in failed):
            print_error(RetbenchError(cause, step), as_json=False)
    if not failed:
        return 0
    return PARTLY_DONE if len(failed) < len(rows) else int(failed[0]["exit_code"])
