"""retbench rerank: a saved run, ours or a TREC run of another system, in a new order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, cli_command, is_quiet, print_json, print_status
from retbench.cli.run import format_cell, print_cells


@cli_command
def rerank(
    *,
    run: Annotated[str, typer.Argument(help="A run's folder, its settings-id, or a TREC run file.")],
    with_: Annotated[
        list[str], typer.Option("--with", help="NAME:key=value,... (docs/reranking.md); may be repeated.")
    ],
    task: Annotated[str | None, typer.Option(help="The task a TREC run file was made for.")] = None,
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    as_json: AsJson = False,
) -> int:
    """Rerank a saved run; every reranker's result is a run of its own beside it."""
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.evaluation.request import command_line
    from retbench.pipelines.reranking import rerank as story
    from retbench.records.cell import exit_code
    from retbench.records.output import Place
    from retbench.records.phase_timer import Silent

    place = Place(out, Silent() if is_quiet() else ProgressDisplay(), print_status, command_line())
    done: list[Any] = []
    for cell in story.rerank_run(run, tuple(with_), task, place):
        print_status(format_cell(cell))
        done.append(cell)
    print_json([cell.json() for cell in done]) if as_json else print_cells(done)
    return exit_code(done[1:])  # the first is the run that was there
