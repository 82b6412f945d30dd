"""retbench cache: list stored embeddings with their size, and remove them."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result, print_status
from retbench.cli.terminal_table import Column, print_table
from retbench.errors import UsageError

app = typer.Typer(help="List or prune stored embeddings.", no_args_is_help=True)


@app.command("list")
@cli_command
def list_stores(as_json: AsJson = False) -> None:
    """List stored embeddings, their size, and the cells that use them."""
    from retbench.store.embedding_cache import list_cached_embeddings

    stores = list_cached_embeddings()
    if as_json:
        print_json([stored.to_json() for stored in stores])
        return
    print_table(
        [
            Column("model", [stored.model for stored in stores], kind="name"),
            Column("key", [stored.folder.name[:12] for stored in stores], 2, "text"),
            Column("texts", ["–" if stored.rows is None else f"{stored.rows:,}" for stored in stores]),
            Column("MB", [f"{stored.bytes / 1e6:,.1f}" for stored in stores]),
            Column("state", ["finished" if stored.finished else "unfinished" for stored in stores], 1, "text"),
            Column("used by", [", ".join(stored.used_by) for stored in stores], 3, "prose"),
        ]
    )
    print_result(f"{len(stores)} stores, {sum(stored.bytes for stored in stores) / 1e6:,.1f} MB")


@app.command("prune")
@cli_command
def prune_stores(
    embeddings: Annotated[bool, typer.Option("--embeddings", help="All stored embeddings.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="The embeddings of this model; may be repeated.")] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="The embeddings of interrupted runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove stored embeddings; the next run computes them again. Weights, collections and results are kept."""
    from retbench.store.embedding_cache import list_cached_embeddings, remove_embeddings

    if not (embeddings or model or unfinished):
        raise UsageError("nothing to prune is given", "give --embeddings, --model NAME or --unfinished")
    selected = [
        s for s in list_cached_embeddings() if embeddings or s.model in (model or ()) or (unfinished and not s.finished)
    ]
    removed = [stored for stored in selected if dry_run or remove_embeddings(stored)]
    if as_json:
        print_json([stored.to_json() for stored in removed])
        return
    if len(removed) < len(selected):
        print_status(f"{len(selected) - len(removed)} kept: in use by another process")
    action = "would be removed" if dry_run else "removed"
    print_result(f"{len(removed)} stores {action}, {sum(stored.bytes for stored in removed) / 1e6:,.1f} MB")
