"""retbench report: the leaderboard of a results folder."""

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.command import (
    AsJson,
    choose_results_folder,
    cli_command,
    find_unprintable_character,
    print_json,
    print_result,
    print_skipped,
    print_status,
    write_result,
)
from retbench.cli.complete_names import complete_metrics, complete_suites
from retbench.errors import UsageError
from retbench.system.user_config import DEFAULT_RESULTS

if TYPE_CHECKING:
    from retbench.pipelines.report import Report


class ReportFormat(StrEnum):
    """The formats of a report."""

    terminal = "terminal"
    markdown = "markdown"
    html = "html"
    csv = "csv"
    latex = "latex"
    json = "json"


@cli_command
def report(
    *,
    results: Annotated[
        Path,
        typer.Argument(default_factory=choose_results_folder, show_default=DEFAULT_RESULTS, help="The results folder."),
    ],
    format_: Annotated[
        ReportFormat | None,
        typer.Option("--format", help="The output format (default: terminal on a terminal, else markdown)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The output file (default: stdout).")] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this suite, also with tasks that are at home in another one; may be repeated.",
            autocompletion=complete_suites,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Rank and test by this metric, such as recall@100 (default: the main metric of each task).",
            autocompletion=complete_metrics,
        ),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Show published rows beside measured rows, marked.")
    ] = False,
    table: Annotated[
        list[str] | None, typer.Option(help="Show only this published table; implies --reference; may be repeated.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder for plots: SVG, and PNG with the extra plots.")] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Add the settings-id of every score, for compare, inspect and verify.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Print the leaderboard: scores with ranks and confidence intervals, speed, memory, size and price."""
    from retbench.cards.task import parse_metric
    from retbench.cli.board_table import print_boards
    from retbench.pipelines.report import build_report

    report_format = ReportFormat.json if as_json else format_ or _choose_format(out)
    if out and report_format is ReportFormat.terminal:
        raise UsageError("--format terminal is not written to a file", "choose markdown, html, csv, latex or json")
    board_report = build_report(results, reference, tuple(table or ()), tuple(suite or ()), parse_metric(metric))
    if report_format is ReportFormat.terminal:
        print_boards(board_report.boards, ids)
        print_status(_format_next_steps(board_report, results, ids, f" --metric {metric}" if metric else ""))
    elif out is None:
        _print_report(board_report, report_format, ids)
    else:
        write_result(out, _format_report(board_report, report_format, ids))
        print_status(f"written to {out}")
    if plots:
        _write_plots(board_report.boards, plots)
    return print_skipped(board_report.problems)


def _choose_format(out: Path | None) -> ReportFormat:
    return ReportFormat.terminal if out is None and sys.stdout.isatty() else ReportFormat.markdown


def _print_report(board_report: "Report", report_format: ReportFormat, ids: bool) -> None:
    """Print a report in the format of a file; one for programs must keep every character."""
    if report_format is ReportFormat.json:
        print_json(board_report.list_cells())
        return
    text = _format_report(board_report, report_format, ids)
    missing = find_unprintable_character(text)
    if missing and report_format is not ReportFormat.markdown:
        raise UsageError(
            f"stdout has the encoding {sys.stdout.encoding}, which has no {missing!r}",
            "give --out FILE, which is written as UTF-8, or set PYTHONIOENCODING=utf-8",
        )
    print_result(text)


def _format_report(board_report: "Report", report_format: ReportFormat, ids: bool) -> str:
    if report_format is ReportFormat.json:
        return json.dumps(board_report.list_cells(), indent=1, ensure_ascii=False)
    return board_report.format(report_format.value, ids)


def _format_next_steps(board_report: "Report", results: Path, ids: bool, metric_option: str) -> str:
    """Give the commands that lead on: the ids of the runs, and the test between the first two rows."""
    from retbench.reports.settings_ids import choose_runs_to_compare

    folder = "" if results == choose_results_folder() else f" {shlex.quote(str(results))}"
    commands = [] if ids else [f"retbench report{folder}{metric_option} --ids"]
    if pair := choose_runs_to_compare(board_report.boards):
        names = " ".join(run.record.settings_id for run in pair)
        commands.append(f"retbench compare {names}{folder and ' --results'}{folder}{metric_option}")
    return "\n".join(f"{'next: ' if not n else '      '} {command}" for n, command in enumerate(commands))


def _write_plots(boards: list[Any], folder: Path) -> None:
    from retbench.reports.plots import can_write_png, write_plots
    from retbench.system.installation import suggest_extra

    files = write_plots(boards, folder)
    print_status(
        f"{len(files)} plots written to {folder}" + ("" if can_write_png() else f"; for PNG: {suggest_extra('plots')}")
    )
