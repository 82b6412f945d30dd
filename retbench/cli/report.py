"""retbench report: the leaderboard of a results folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, cli_command, print_result, print_skipped, print_status, write_result


class ReportFormat(StrEnum):
    """What a report can be written as."""

    markdown = "markdown"
    html = "html"
    csv = "csv"
    latex = "latex"
    json = "json"


@cli_command
def report(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    format_: Annotated[ReportFormat, typer.Option("--format", help="How to write it.")] = ReportFormat.markdown,
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

    board_report = story.build_report(results, reference, tuple(table or ()))
    report_format = ReportFormat.json if as_json else format_
    text = json.dumps(board_report.list_cells(), indent=1, ensure_ascii=False) if report_format is ReportFormat.json else board_report.format(report_format.value)
    if out is None:
        print_result(text)
    else:
        write_result(out, text)
        print_status(f"written to {out}")
    if plots:
        _write_plots(board_report.blocks, plots)
    return print_skipped(board_report.problems)


def _write_plots(blocks: list[Any], folder: Path) -> None:
    from retbench.reports.plots import can_write_png, write_plots

    files = write_plots(blocks, folder)
    print_status(
        f"{len(files)} plots written to {folder}" + ("" if can_write_png() else "; PNG too: pip install 'retbench[plots]'")
    )
