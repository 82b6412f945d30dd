"""retbench report: the leaderboard of a results folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, cli_command, print_result, print_skipped, print_status, write_result


class Format(StrEnum):
    """What a report can be written as."""

    markdown = "markdown"
    html = "html"
    csv = "csv"
    latex = "latex"
    json = "json"


@cli_command
def report(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.markdown,
    out: Annotated[Path | None, typer.Option(help="A file to write to; stdout otherwise.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Put published rows beside ours, marked.")] = False,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this published table; implies --reference; may be repeated.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder for the plots: SVG, and PNG with the extra.")] = None,
    as_json: AsJson = False,
) -> int:
    """Print the leaderboard: quality with ranks and intervals beside speed, memory, size and price."""
    import json

    from retbench.pipelines import report as story

    made = story.report(results, reference, tuple(table or ()))
    form = Format.json if as_json else format_
    text = json.dumps(made.cells(), indent=1, ensure_ascii=False) if form is Format.json else made.text(form.value)
    if out is None:
        print_result(text)
    else:
        write_result(out, text)
        print_status(f"written to {out}")
    if plots:
        _plot(made.blocks, plots)
    return print_skipped(made.problems)


def _plot(blocks: list[Any], folder: Path) -> None:
    from retbench.reports.plots import can_png, plots

    written = plots(blocks, folder)
    print_status(
        f"{len(written)} plots written to {folder}" + ("" if can_png() else "; PNG too: pip install 'retbench[plots]'")
    )
