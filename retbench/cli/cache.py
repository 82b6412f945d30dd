"""retbench cache: what stored embeddings cost on disk, and how to be rid of them."""

import sys
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result, print_status
from retbench.errors import UsageError

app = typer.Typer(help="List or prune stored embeddings.", no_args_is_help=True)


@app.command("list")
@cli_command
def list_stores(as_json: AsJson = False) -> None:
    """Show what stored embeddings cost on disk and which cells use them."""
    from rich.console import Console
    from rich.table import Table

    from retbench.store.embedding_cache import shelf

    found = shelf()
    if as_json:
        print_json([stored.json() for stored in found])
        return
    table = Table("model", "key", "texts", "MB", "state", "used by", box=None, header_style="bold")
    for stored in found:
        rows = f"{stored.rows:,}" if stored.rows is not None else "–"
        state = "finished" if stored.finished else "unfinished"
        size = f"{stored.bytes / 1e6:,.1f}"
        table.add_row(stored.model, stored.folder.name[:12], rows, size, state, ", ".join(stored.used_by))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print_result(f"{len(found)} stores, {sum(stored.bytes for stored in found) / 1e6:,.1f} MB")


@app.command("prune")
@cli_command
def prune_stores(
    embeddings: Annotated[bool, typer.Option("--embeddings", help="All stored embeddings.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="Those of this model; may be repeated.")] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Those of interrupted runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove stored embeddings; the next run computes them again. Weights, collections and results stay."""
    from retbench.store.embedding_cache import remove, shelf

    if not (embeddings or model or unfinished):
        raise UsageError("nothing was named to be pruned", "give --embeddings, --model NAME or --unfinished")
    wanted = [s for s in shelf() if embeddings or s.model in (model or ()) or (unfinished and not s.finished)]
    gone = [stored for stored in wanted if dry_run or remove(stored)]
    if as_json:
        print_json([stored.json() for stored in gone])
        return
    if len(gone) < len(wanted):
        print_status(f"{len(wanted) - len(gone)} in use by another process: kept")
    does = "would be removed" if dry_run else "removed"
    print_result(f"{len(gone)} stores {does}, {sum(stored.bytes for stored in gone) / 1e6:,.1f} MB")
