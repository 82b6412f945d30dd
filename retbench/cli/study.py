"""retbench study: runs a study, a plan of many cells, and reports it."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.command import (
    AsJson,
    ResultsOut,
    cli_command,
    is_quiet,
    print_json,
    print_result,
    print_skipped,
    print_status,
    write_result,
)
from retbench.cli.complete_names import complete_studies
from retbench.cli.study_show import show
from retbench.errors import UsageError
from retbench.system.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from retbench.cards.study import Study
    from retbench.pipelines.studies.cells import StudyCell
    from retbench.pipelines.studies.status import StudyCellStatus

app = typer.Typer(
    help="Studies, plans of models, methods and tasks: list, show, run, status, report, new.", no_args_is_help=True
)
app.command("show")(show)
Name = Annotated[
    str, typer.Argument(help="A study (retbench study list) or a TOML file.", autocompletion=complete_studies)
]
OnlyStage = Annotated[str | None, typer.Option(help="Only this stage.")]
AtToySize = Annotated[
    bool,
    typer.Option("--toy", help="The plan on tiny random models and collections, in OUT/toy; its scores mean nothing."),
]
Many = list[str] | None
STATUS_GLYPHS = {"done": "✓", "failed": "✗", "skipped": "–", "open": "·"}


class StudyReportFormat(StrEnum):
    """The formats of a study's report."""

    markdown = "markdown"
    latex = "latex"
    html = "html"


def _find_study(name: str, out: Path, at_toy_size: bool) -> "tuple[Study, Path]":
    """Find a study and the folder of its results; at toy size, also write what it runs on."""
    from retbench.cards import catalog

    study = catalog.find_study(name)
    if not at_toy_size:
        return study, out
    from retbench.pipelines.studies.toy_study import open_toy_study

    toy_study, folder = open_toy_study(study, out)
    print_status(f"{study.name} at toy size, in {folder}: random weights and twelve texts, so the scores mean nothing")
    return toy_study, folder


@app.command("list")
@cli_command
def list_studies(as_json: AsJson = False) -> None:
    """List the studies."""
    from retbench.cards import catalog

    rows = [
        {
            "name": study.name,
            "title": study.title,
            "paper": study.paper,
            "stages": [stage.name for stage in study.stages],
        }
        for study in catalog.load_studies()
    ]
    width = max((len(str(row["name"])) for row in rows), default=0)
    lines = [f"{row['name']:<{width}}  {row['title']}" for row in rows]
    print_json(rows) if as_json else print_result("\n".join(lines))


@app.command("run")
@cli_command
def run(
    name: Name,
    out: ResultsOut,
    stage: OnlyStage = None,
    devices: Annotated[str, typer.Option("--devices", "--on", help="Devices, as in retbench run.")] = "1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, tokens, hours and disk without running.")
    ] = False,
    toy: AtToySize = False,
    as_json: AsJson = False,
) -> int:
    """Run a study cell by cell. Finished cells are reused, failed cells are tried again."""
    from retbench.cli.progress import ProgressDisplay, TrainingDisplay
    from retbench.pipelines.studies.status import list_statuses
    from retbench.records.cell import compute_exit_code

    study, out = _find_study(name, out, toy)
    if dry_run:
        estimates = _estimate_study(study, out, stage)
        print_json(estimates) if as_json else print_result(_format_estimates(estimates))
        return 0
    from retbench.pipelines.studies.run import run_study

    output: dict[str, Any] = {}
    if not is_quiet():
        output = {"progress": ProgressDisplay(), "log_status": print_status, "log_metrics": TrainingDisplay()}
    results = []
    for result in run_study(study, out, stage, devices=devices, **output):
        if result.status != "skipped":
            outcome = result.error or f"{100 * (result.main_score or 0):.2f}"
            print_status(f"{result.model} · {result.method} · {result.task}: {outcome}")
        results.append(result)
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        print_result(_format_status_grid(list_statuses(study, out)))
    return compute_exit_code(results)


def _estimate_study(study: "Study", out: Path, stage: str | None) -> list[dict[str, Any]]:
    """Estimate the cells at the speed of this machine in large products; no model is loaded."""
    from retbench.engines.peak_throughput import measure_device_peak
    from retbench.pipelines.estimate_cost import DeviceSpec
    from retbench.pipelines.studies.cost import CostEstimator
    from retbench.pipelines.studies.dry_run import estimate_study

    estimator = CostEstimator(DeviceSpec(peak=measure_device_peak()))
    return list(estimate_study(study, out, estimator, stage))


@app.command("status")
@cli_command
def status(
    name: Name,
    out: ResultsOut,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until no cell is open.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which cells are done, failed, skipped or open."""
    from retbench.cards import catalog
    from retbench.pipelines.studies.status import list_statuses

    study = catalog.find_study(name)
    statuses = list_statuses(study, out)
    if as_json:
        facts = ("status", "score", "reason", "record")
        print_json([{**status.cell.to_json(), **{key: getattr(status, key) for key in facts}} for status in statuses])
        return
    if watch:
        _watch_status(lambda: list_statuses(study, out))
    else:
        print_result(_format_status_grid(statuses))


@app.command("report")
@cli_command
def report(
    name: Name,
    results: ResultsOut,
    format_: Annotated[
        StudyReportFormat, typer.Option("--format", help="The output format.")
    ] = StudyReportFormat.markdown,
    out: Annotated[Path | None, typer.Option(help="The output file (default: stdout).")] = None,
    toy: AtToySize = False,
) -> int:
    """Print the paper's figures beside ours, then the study's leaderboards, one per stage."""
    from retbench.pipelines.studies.reproduction import build_reproduction_tables
    from retbench.pipelines.studies.status import build_stage_reports
    from retbench.reports.html_page import build_page
    from retbench.reports.study_tables import format_study_latex, format_study_markdown

    study, results = _find_study(name, results, toy)
    stage_reports = build_stage_reports(study, results)
    reproductions = [table for table in build_reproduction_tables(study, results) if table.has_cells]
    stages = [
        (stage_report.stage.title or stage_report.stage.name, stage_report.report.boards, stage_report.missing)
        for stage_report in stage_reports
    ]
    formatters = {StudyReportFormat.markdown: format_study_markdown, StudyReportFormat.latex: format_study_latex}
    text = (
        formatters[format_](study, stages, reproductions)
        if format_ in formatters
        else build_page([b for _, boards, _ in stages for b in boards], reproductions)
    )
    if out:
        write_result(out, text)
        print_status(f"written to {out}")
    else:
        print_result(text)
    return print_skipped([problem for stage_report in stage_reports for problem in stage_report.report.problems])


@app.command("new")
@cli_command
def new(
    *,
    name: Annotated[str, typer.Argument(help="The new study's name.")],
    model: Annotated[list[str], typer.Option(help="A model; may be repeated.")],
    suite: Annotated[Many, typer.Option(help="A suite; may be repeated.")] = None,
    task: Annotated[Many, typer.Option(help="A task; may be repeated.")] = None,
    method: Annotated[Many, typer.Option(help="A method; may be repeated.")] = None,
    sample: Annotated[int | None, typer.Option(help="Use only N test queries per task.")] = None,
    title: Annotated[str | None, typer.Option(help="A title of one line.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file (default: NAME.toml).")] = None,
) -> None:
    """Write a study with one stage; run it with `retbench study run FILE`."""
    from retbench.system.toml_writer import format_toml_value

    if not suite and not task:
        raise UsageError("the study has no task", "add --suite or --task (see: retbench list suites)")
    file = out or Path(f"{name}.toml")
    if file.exists():
        raise UsageError(f"{file} already exists", "choose another file with --out")
    card_lists = {"models": model, "suites": suite, "tasks": task, "methods": method}
    lines = [
        f"name = {format_toml_value(name)}",
        f"title = {format_toml_value(title or name)}",
        "",
        "[[stages]]",
        'name = "zero-shot"',
    ]
    lines += [f"{key} = {format_toml_value(values)}" for key, values in card_lists.items() if values]
    lines += [f"sample = {sample}"] if sample else []
    write_result(file, "\n".join(lines) + "\n")
    print_result(f"{file} written; next: retbench study run {file} --dry-run")


def _format_status_grid(statuses: "list[StudyCellStatus]") -> str:
    """A row per model, a symbol per cell; then each reason once."""
    lines: list[str] = []
    for stage in dict.fromkeys(status.cell.stage for status in statuses):
        stage_statuses = [status for status in statuses if status.cell.stage == stage]
        rows: dict[str, list[str]] = {}
        for status in stage_statuses:
            rows.setdefault(_format_row_name(status.cell), []).append(STATUS_GLYPHS[status.status])
        done = sum(status.status == "done" for status in stage_statuses)
        lines += [f"{stage}: {done} of {len(stage_statuses)} done"]
        lines += [f"  {''.join(glyphs)}  {row}" for row, glyphs in rows.items()]
        lines += [
            f"  {reason}" for reason in dict.fromkeys(status.reason for status in stage_statuses if status.reason)
        ]
    return "\n".join([*lines, "  ".join(f"{glyph} {word}" for word, glyph in STATUS_GLYPHS.items())])


def _format_row_name(cell: "StudyCell") -> str:
    seed = "" if cell.seed is None else f" · seed {cell.seed}"
    return f"{cell.model} · {cell.method}{seed}"


def _watch_status(list_statuses: "Callable[[], list[StudyCellStatus]]") -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=1) as live:
        while True:
            statuses = list_statuses()
            live.update(Text(_format_status_grid(statuses)))
            if all(status.status != "open" for status in statuses):
                return
            time.sleep(2)


def _count_statuses(estimates: list[dict[str, Any]]) -> str:
    counts = {
        status: sum(estimate["status"] == status for estimate in estimates)
        for status in ("open", "done", "not here", "skipped")
    }
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _format_estimates(estimates: list[dict[str, Any]]) -> str:
    lines = [_format_estimate_line(estimate) for estimate in estimates]
    trainings = [estimate for estimate in estimates if "training" in estimate]
    cells = [estimate for estimate in estimates if "training" not in estimate]
    lines.append(f"{len(cells)} cells: {_count_statuses(cells)}")
    if trainings:
        lines.append(f"{len(trainings)} trainings: {_count_statuses(trainings)}")
    open_estimates = [estimate for estimate in estimates if estimate["status"] in ("open", "not here")]
    totals = {
        key: sum(estimate.get(key, 0) for estimate in open_estimates) for key in ("tokens", "seconds", "disk_bytes")
    }
    duration = f"about {format_duration(totals['seconds'])} on this machine at 40% of its peak"
    lines.append(f"to be done: {totals['tokens']:,} tokens, {duration}, {totals['disk_bytes'] / 1e9:,.1f} GB on disk")
    unknown = sum("seconds" not in estimate for estimate in open_estimates)
    lines += [f"{unknown} of them have no estimate: their data or model sizes are not known yet"] if unknown else []
    return "\n".join(lines)


def _format_estimate_line(estimate: dict[str, Any]) -> str:
    seed = "" if estimate["seed"] is None else f" · seed {estimate['seed']}"
    subject = (
        f"train {estimate['training']}"
        if "training" in estimate
        else f"{estimate['model']} · {estimate['method']}{seed} · {estimate['task']}"
    )
    facts = [estimate["status"]]
    if "tokens" in estimate:
        facts += [f"{estimate['tokens']:,} tokens"]
    if "seconds" in estimate:
        facts += [f"about {format_duration(max(1, estimate['seconds']))}"]
    facts += [estimate["reason"]] if estimate.get("reason") else []
    return f"{estimate['stage']}: {subject}: {', '.join(facts)}"
