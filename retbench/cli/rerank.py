"""retbench rerank: reranks a finished run, or a TREC run of another system."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, ResultsOut, cli_command, is_quiet, print_json, print_status
from retbench.cli.complete_names import complete_tasks


@cli_command
def rerank(
    *,
    run: Annotated[
        str, typer.Argument(help="A run's folder, settings-id or model, a TREC run file, or candidate lists.")
    ],
    with_: Annotated[
        list[str], typer.Option("--with", help="A reranker, NAME:key=value,... (docs/reranking.md); can be repeated.")
    ],
    task: Annotated[
        str | None, typer.Option(help="The task of a run file, or of a model's run.", autocompletion=complete_tasks)
    ] = None,
    out: ResultsOut,
    as_json: AsJson = False,
) -> int:
    """Rerank a finished run; every reranker writes a run of its own beside it."""
    from retbench.cli.cells import format_cell, print_cells
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.evaluation.request import format_command_line
    from retbench.pipelines.reranking.rerank import rerank_run
    from retbench.records.cell import Cell, compute_exit_code
    from retbench.records.output import RunOutput
    from retbench.records.phase_timer import NoProgress

    output = RunOutput(out, NoProgress() if is_quiet() else ProgressDisplay(), print_status, format_command_line())
    cells: list[Cell] = []
    for cell in rerank_run(run, tuple(with_), task, output):
        print_status(format_cell(cell))
        cells.append(cell)
    print_json([cell.to_json() for cell in cells]) if as_json else print_cells(cells, out)
    return compute_exit_code(cells[1:])  # the first cell is the existing run
