"""retbench report: the leaderboard of a results folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cards.user_config import DEFAULT_RESULTS
from retbench.cli.command import (
    AsJson,
    choose_results_folder,
    cli_command,
    print_result,
    print_skipped,
    print_status,
    write_result,
)


class ReportFormat(StrEnum):
    """The formats of a report."""

    markdown = "markdown"
    html = "html"
    csv = "csv"
    latex = "latex"
    json = "json"


@cli_command
def report(
    results: Annotated[
        Path,
        typer.Argument(default_factory=choose_results_folder, show_default=DEFAULT_RESULTS, help="The results folder."),
    ],
    format_: Annotated[ReportFormat, typer.Option("--format", help="The output format.")] = ReportFormat.markdown,
    out: Annotated[Path | None, typer.Option(help="The output file (default: stdout).")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Show published rows beside measured rows, marked.")
    ] = False,
    table: Annotated[
        list[str] | None, typer.Option(help="Show only this published table; implies --reference; may be repeated.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for plots: SVG, and PNG if retbench[plots] is installed.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Print the leaderboard: scores with ranks and confidence intervals, speed, memory, size and price."""
    import json

    from retbench.pipelines.report import build_report

    board_report = build_report(results, reference, tuple(table or ()))
    report_format = ReportFormat.json if as_json else format_
    text = (
        json.dumps(board_report.list_cells(), indent=1, ensure_ascii=False)
        if report_format is ReportFormat.json
        else board_report.format(report_format.value)
    )
    if out is None:
        print_result(text)
    else:
        write_result(out, text)
        print_status(f"written to {out}")
    if plots:
        _write_plots(board_report.boards, plots)
    return print_skipped(board_report.problems)


def _write_plots(boards: list[Any], folder: Path) -> None:
    from retbench.cards.installation import suggest_extra
    from retbench.reports.plots import can_write_png, write_plots

    files = write_plots(boards, folder)
    print_status(
        f"{len(files)} plots written to {folder}" + ("" if can_write_png() else f"; for PNG: {suggest_extra('plots')}")
    )
