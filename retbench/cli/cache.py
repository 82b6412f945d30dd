"""retbench cache: list stored embeddings and scores of cross-encoders with their size, and remove them."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result, print_status
from retbench.cli.terminal_table import Column, print_table
from retbench.errors import UsageError

app = typer.Typer(help="List or prune stored embeddings and pair scores.", no_args_is_help=True)


@app.command("list")
@cli_command
def list_stores(as_json: AsJson = False) -> None:
    """List stored embeddings and the scores of cross-encoders, their size, and the cells that use them."""
    from retbench.store.cached_stores import list_cached_stores

    stores = list_cached_stores()
    if as_json:
        print_json([stored.to_json() for stored in stores])
        return
    print_table(
        [
            Column("model", [stored.model for stored in stores], kind="name"),
            Column("kind", [stored.kind for stored in stores], 4, "text"),
            Column("key", [stored.key[:12] for stored in stores], 2, "text"),
            Column("texts or pairs", ["–" if stored.rows is None else f"{stored.rows:,}" for stored in stores]),
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
    pair_scores: Annotated[
        bool, typer.Option("--pair-scores", help="All scores that cross-encoders gave in trainings.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option(help="All that is stored of a model; may be repeated.")] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="The embeddings of interrupted runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove stored embeddings and pair scores; they are computed again. Weights, collections and results are kept."""
    from retbench.store.cached_stores import list_cached_stores

    kinds = [kind for kind, is_given in (("embeddings", embeddings), ("pair scores", pair_scores)) if is_given]
    if not (kinds or model or unfinished):
        step = "give --embeddings, --pair-scores, --model NAME or --unfinished"
        raise UsageError("nothing to prune is given", step)
    selected = [
        stored
        for stored in list_cached_stores()
        if stored.kind in kinds or stored.model in (model or ()) or (unfinished and not stored.finished)
    ]
    removed = [stored for stored in selected if dry_run or stored.remove()]
    if as_json:
        print_json([stored.to_json() for stored in removed])
        return
    if len(removed) < len(selected):
        print_status(f"{len(selected) - len(removed)} kept: in use by another process")
    action = "would be removed" if dry_run else "removed"
    print_result(f"{len(removed)} stores {action}, {sum(stored.bytes for stored in removed) / 1e6:,.1f} MB")
