"""retbench fetch: download weights and collections, so that a run needs no network."""

from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_error, print_json, print_result, print_status
from retbench.cli.complete_names import (
    complete_any,
    complete_models,
    complete_studies,
    complete_suites,
    complete_tasks,
)
from retbench.cli.terminal_table import Column, describe_hidden, print_table
from retbench.errors import PARTLY_DONE, RetbenchError, UsageError, join_names

if TYPE_CHECKING:
    from retbench.pipelines.fetch import FetchRow

complete_fetchable = complete_any(complete_models, complete_tasks, complete_suites, complete_studies)


@cli_command
def fetch(
    name: Annotated[
        list[str] | None, typer.Argument(help="Models, tasks, suites or studies.", autocompletion=complete_fetchable)
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Fetch nothing; list what is cached, its size, and what is missing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Download weights and collections into the cache, with checksums. Cached files are not fetched again."""
    from retbench.pipelines import fetch as fetch_pipeline

    if not name and not list_:
        raise UsageError("nothing to fetch", "give models, tasks, suites or studies, or --list")
    names = [part for argument in name or [] for part in _expand_study(argument)]
    rows = (
        fetch_pipeline.list_cached(names)
        if list_
        else [row for part in names for row in fetch_pipeline.fetch_by_name(part, print_status)]
    )
    failed = [row for row in rows if "error" in row]
    if as_json:
        print_json(rows)
    else:
        _print_listing(rows) if list_ else print_result("\n".join(map(fetch_pipeline.format_row, rows)))
        for cause, step in dict.fromkeys((row["error"], row["next_step"]) for row in failed):
            print_error(RetbenchError(cause, step), as_json=False)
    if not failed:
        return 0
    return PARTLY_DONE if len(failed) < len(rows) else int(failed[0]["exit_code"])


def _print_listing(rows: "list[FetchRow]") -> None:
    """Print what is cached as a table; the columns that nothing fills are left out."""
    columns = [
        Column("name", [row["name"] for row in rows], kind="text"),
        Column("kind", [row["kind"] for row in rows], 4, kind="text"),
        Column("state", [row.get("state", "cannot be used") for row in rows], kind="text"),
        Column("MB", [f"{row['megabytes']:,.1f}" if "megabytes" in row else "–" for row in rows]),
        *(
            Column(head, [f"{row[head]:,}" if row.get(head) is not None else "–" for row in rows], room)
            for room, head in enumerate(("documents", "queries"), start=1)
            if any(row.get(head) is not None for row in rows)
        ),
    ]
    if any(row.get("missing") for row in rows):
        columns.append(Column("missing", [join_names(row.get("missing", ())) for row in rows], 3, kind="prose"))
    if hidden := print_table(columns):
        print_status(describe_hidden(hidden, "a wider terminal or --json has them"))


def _expand_study(name: str) -> list[str]:
    """All models and tasks of a study; the name itself if there is no study of that name."""
    from retbench.cards import catalog
    from retbench.pipelines.studies.requirements import list_fetchable_names

    is_study = name in catalog.load_studies() or name.endswith(".toml")
    return list_fetchable_names(catalog.find_study(name)) if is_study else [name]
