"""retbench study: a whole plan in one command."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import (
    AsJson,
    cli_command,
    is_quiet,
    print_json,
    print_result,
    print_skipped,
    print_status,
    write_result,
)
from retbench.errors import UsageError

app = typer.Typer(help="A plan of models, methods and tasks: list, run, status, report, new.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A study (retbench study list) or a TOML file.")]
Out = Annotated[Path, typer.Option(help="The results folder.")]
OnlyStage = Annotated[str | None, typer.Option(help="Only this stage.")]
Many = list[str] | None
GLYPHS = {"done": "✓", "failed": "✗", "skipped": "–", "open": "·"}


class Format(StrEnum):
    """What a study's report can be written as."""

    markdown = "markdown"
    latex = "latex"
    html = "html"


@app.command("list")
@cli_command
def listing(as_json: AsJson = False) -> None:
    """List the studies."""
    from retbench.cards import catalog

    rows = [
        {"name": one.name, "title": one.title, "paper": one.paper, "stages": [stage.name for stage in one.stages]}
        for one in catalog.load_studies()
    ]
    print_json(rows) if as_json else print_result("\n".join(f"{row['name']:<20} {row['title']}" for row in rows))


@app.command("run")
@cli_command
def run(
    name: Name,
    out: Out = Path("results"),
    stage: OnlyStage = None,
    devices: Annotated[str, typer.Option("--devices", "--on", help="As in retbench run.")] = "1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, tokens, hours and disk; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Run a study, cell by cell; what is finished is found on disk, what failed is tried again."""
    from retbench.cards import catalog
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.studies import run as run_module
    from retbench.pipelines.studies.status import states
    from retbench.records.cell import exit_code

    plan = catalog.find_study(name)
    if dry_run:
        found = list(run_module.forecast(plan, out, stage))
        print_json(found) if as_json else print_result(_forecast(found))
        return 0
    show: dict[str, Any] = {} if is_quiet() else {"show": ProgressDisplay(), "say": print_status}
    cells = []
    for cell in run_module.run(plan, out, stage, devices=devices, **show):
        if cell.status != "skipped":
            print_status(
                f"{cell.model} · {cell.method} · {cell.task}: {cell.error or f'{100 * (cell.main_score or 0):.2f}'}"
            )
        cells.append(cell)
    if as_json:
        print_json([cell.json() for cell in cells])
    else:
        print_result(_grid(states(plan, out)))
    return exit_code(cells)


@app.command("status")
@cli_command
def status(
    name: Name,
    out: Out = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until nothing is open.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which cells are done, failed, skipped or open."""
    from dataclasses import asdict

    from retbench.cards import catalog
    from retbench.pipelines.studies import status as story

    plan = catalog.find_study(name)
    found = story.states(plan, out)
    if as_json:
        facts = ("status", "score", "reason", "record")
        print_json([{**asdict(state.slot), **{key: getattr(state, key) for key in facts}} for state in found])
        return
    if watch:
        _watch(lambda: story.states(plan, out))
    else:
        print_result(_grid(found))


@app.command("report")
@cli_command
def report(
    name: Name,
    results: Out = Path("results"),
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.markdown,
    out: Annotated[Path | None, typer.Option(help="A file to write to; stdout otherwise.")] = None,
) -> int:
    """Print the study's own tables, one board a stage, beside the published ones it names."""
    from retbench.cards import catalog
    from retbench.pipelines.studies.status import chapters
    from retbench.reports.html_page import page
    from retbench.reports.study_tables import study_latex, study_markdown

    plan = catalog.find_study(name)
    made = chapters(plan, results)
    found = [(one.stage.title or one.stage.name, one.report.blocks, one.lost) for one in made]
    write = {Format.markdown: study_markdown, Format.latex: study_latex}
    text = write[format_](plan, found) if format_ in write else page([b for _, blocks, _ in found for b in blocks])
    if out:
        write_result(out, text)
        print_status(f"written to {out}")
    else:
        print_result(text)
    return print_skipped([problem for one in made for problem in one.report.problems])


@app.command("new")
@cli_command
def new(
    *,
    name: Annotated[str, typer.Argument(help="The new study's name.")],
    model: Annotated[list[str], typer.Option(help="A model; may be repeated.")],
    suite: Annotated[Many, typer.Option(help="A suite; may be repeated.")] = None,
    task: Annotated[Many, typer.Option(help="A task; may be repeated.")] = None,
    method: Annotated[Many, typer.Option(help="A method; may be repeated.")] = None,
    sample: Annotated[int | None, typer.Option(help="Only N test queries a task.")] = None,
    title: Annotated[str | None, typer.Option(help="One line about it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; NAME.toml by default.")] = None,
) -> None:
    """Write a plan with one stage; `retbench study run FILE` runs it."""
    from retbench.cards.toml_writer import format_toml_value

    if not suite and not task:
        raise UsageError("nothing to run on", "name a --suite or a --task (retbench list suites)")
    file = out or Path(f"{name}.toml")
    if file.exists():
        raise UsageError(f"{file} is there already", "name another --out")
    lists = {"models": model, "suites": suite, "tasks": task, "methods": method}
    lines = [
        f"name = {format_toml_value(name)}",
        f"title = {format_toml_value(title or name)}",
        "",
        "[[stages]]",
        'name = "zero-shot"',
    ]
    lines += [f"{key} = {format_toml_value(values)}" for key, values in lists.items() if values]
    lines += [f"sample = {sample}"] if sample else []
    write_result(file, "\n".join(lines) + "\n")
    print_result(f"{file} written; next: retbench study run {file} --dry-run")


def _grid(states: list[Any]) -> str:
    """Models down, tasks across, one glyph a cell; then each reason once."""
    lines: list[str] = []
    for stage in dict.fromkeys(state.slot.stage for state in states):
        own = [state for state in states if state.slot.stage == stage]
        rows: dict[str, list[str]] = {}
        for state in own:
            rows.setdefault(_row(state.slot), []).append(GLYPHS[state.status])
        done = sum(state.status == "done" for state in own)
        lines += [f"{stage}: {done} of {len(own)} done"]
        lines += [f"  {''.join(glyphs)}  {row}" for row, glyphs in rows.items()]
        lines += [f"  {reason}" for reason in dict.fromkeys(state.reason for state in own if state.reason)]
    return "\n".join([*lines, "  ".join(f"{glyph} {word}" for word, glyph in GLYPHS.items())])


def _row(slot: Any) -> str:
    seed = "" if slot.seed is None else f" · seed {slot.seed}"
    return f"{slot.model} · {slot.method}{seed}"


def _watch(states: Any) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=1) as live:
        while True:
            found = states()
            live.update(Text(_grid(found)))
            if all(state.status != "open" for state in found):
                return
            time.sleep(2)


def _forecast(found: list[dict[str, Any]]) -> str:
    lines = [_forecast_line(one) for one in found]
    trainings = [one for one in found if "training" in one]
    cells = [one for one in found if "training" not in one]
    counts = {
        status: sum(one["status"] == status for one in cells) for status in ("open", "done", "not here", "skipped")
    }
    lines.append(f"{len(cells)} cells: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if trainings:
        lines.append(f"{len(trainings)} trainings: {sum(one['status'] == 'open' for one in trainings)} open")
    open_ = [one for one in found if one["status"] == "open"]
    total = {key: sum(one.get(key, 0) for one in open_) for key in ("tokens", "seconds", "disk_bytes")}
    hours = f"{total['seconds'] / 3600:.1f} hours here"
    lines.append(
        f"open and measurable: {total['tokens']:,} tokens, {hours}, {total['disk_bytes'] / 1e9:.1f} GB on disk"
    )
    return "\n".join(lines)


def _forecast_line(one: dict[str, Any]) -> str:
    seed = "" if one["seed"] is None else f" · seed {one['seed']}"
    what = (
        f"train {one['training']}" if "training" in one else f"{one['model']} · {one['method']}{seed} · {one['task']}"
    )
    told = [one["status"]]
    if "tokens" in one:
        told += [f"{one['tokens']:,} tokens", f"{one['seconds'] / 60:.1f} minutes"]
    told += [one["reason"]] if one.get("reason") else []
    return f"{one['stage']}: {what}: {', '.join(told)}"
