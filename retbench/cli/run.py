"""retbench run: evaluate models x methods x tasks. Finished cells are read from disk; the result is a table."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.command import (
    AsJson,
    cli_command,
    is_quiet,
    parse_overrides,
    print_error,
    print_json,
    print_result,
    print_status,
)
from retbench.errors import UsageError

if TYPE_CHECKING:
    from retbench.records.cell import Cell, ExpectedScoreCheck

Repeated = list[str] | None


@cli_command
def run(
    *,
    model: Annotated[list[str], typer.Option(help="A model card, a hub id, a folder or a GGUF file; may be repeated.")],
    suite: Annotated[Repeated, typer.Option(help="A suite (retbench list suites); may be repeated.")] = None,
    task: Annotated[Repeated, typer.Option(help="A task card or a BEIR folder; may be repeated.")] = None,
    method: Annotated[
        Repeated, typer.Option(help="An encoding method (retbench list methods); may be repeated.")
    ] = None,
    rerank: Annotated[
        Repeated, typer.Option(help="A reranker, NAME:key=value,... (docs/reranking.md); may be repeated.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="The engine: transformers, sentence-transformers, vllm, endpoint:model=NAME.")
    ] = "transformers",
    weights: Annotated[
        str | None, typer.Option(help="The model's weights: a Hugging Face folder or a GGUF file.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Use only N test queries, with their documents and distractors.")
    ] = None,
    set_: Annotated[
        Repeated,
        typer.Option(
            "--set", help="KEY=VALUE: dtype, max_length, rope, split, depth, dimensions, vector_dtype, search."
        ),
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            "--devices", "--on", help="Devices of this machine: N or all; or ray:store=ADDRESS (docs/cluster.md)."
        ),
    ] = "1",
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, the exact prompts and a cost estimate; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Evaluate models on tasks. Finished cells are read from disk and not run again."""
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.evaluation import dry_run as dry_run_module
    from retbench.pipelines.evaluation import evaluate
    from retbench.pipelines.evaluation.request import EvaluationRequest, format_command_line
    from retbench.records.cell import compute_exit_code

    tasks = evaluate.expand_task_names(tuple(suite or ()), tuple(task or ()))
    if not tasks:
        raise UsageError("no task is given", "give --suite or --task (retbench list suites)")
    if weights and len(model) > 1:
        raise UsageError("--weights needs exactly one --model", "run the models one by one")
    callbacks: dict[str, Any] = {} if is_quiet() else {"progress": ProgressDisplay(), "log_status": print_status}
    overrides = parse_overrides(set_, "dtype=float32")
    request = EvaluationRequest(
        tuple(model), tasks, tuple(method or ()), weights, sample, overrides, tuple(rerank or ()), out,
        command=format_command_line(), engine=engine, devices=devices, **callbacks,
    )  # fmt: skip
    if dry_run:
        cells = list(dry_run_module.dry_run(request))
        print_json(cells) if as_json else print_result(dry_run_module.format_plan(cells))
        return 0
    done = _report_cells(evaluate.evaluate(request))
    if as_json:
        print_json([cell.to_json() for cell in done])
    else:
        print_cells(done)
    return compute_exit_code(done)


def _report_cells(cells: "Iterator[Cell]") -> "list[Cell]":
    """Print a status line for each finished cell, and return all cells."""
    done: list[Cell] = []
    for cell in cells:
        if not done or cell.error is None or cell.error != done[-1].error:  # print a repeated error once
            print_status(format_cell(cell))
        for expected in cell.expected:
            print_status(_format_expected_score(expected))
        done.append(cell)
    return done


def format_cell(cell: "Cell") -> str:
    """Format one finished cell."""
    name = " · ".join((cell.model, cell.method, cell.task, *cell.rerank))
    if cell.status != "done":
        return f"{name}: {cell.status}"
    return f"{name}: {100 * (cell.main_score or 0):.2f}" + (" (already done, read from disk)" if cell.cached else "")


def _format_expected_score(expected: "ExpectedScoreCheck") -> str:
    verdict = "" if expected.is_met else f": differs by more than {100 * expected.tolerance:g}"
    scores = f"expected {100 * expected.score:.2f}, got {100 * expected.got:.2f}"
    return f"  {expected.metric}: {scores}{verdict} ({expected.source})"


def print_cells(cells: "list[Cell]") -> None:
    """Print a table of all finished cells, then the errors."""
    from rich.console import Console
    from rich.table import Table

    done = [cell for cell in cells if cell.status == "done"]
    if done:
        metrics = {
            metric: None
            for cell in done
            for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_100")
            if metric in cell.scores
        }
        rows = Table("model", "method", "task", *metrics, "tokens/s", "seconds")
        for cell in done:
            scores = [f"{100 * cell.scores[m]:.2f}" if m in cell.scores else "–" for m in metrics]
            speed = f"{cell.tokens_per_second:,.0f}" if cell.tokens_per_second else "–"
            method = " + ".join((cell.method, *cell.rerank))
            rows.add_row(cell.model, method, cell.task, *scores, speed, f"{cell.seconds:.1f}")
        Console(width=None if sys.stdout.isatty() else 140).print(rows)
    _print_problems([cell for cell in cells if cell.status != "done"])


def _print_problems(cells: "list[Cell]") -> None:
    """Print each error once, with the cells that have it."""
    from retbench.errors import RetbenchError

    causes: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        causes.setdefault((cell.error or "", cell.next_step or ""), []).append(
            f"{cell.model}/{'+'.join((cell.method, *cell.rerank))}/{cell.task} {cell.status}"
        )
    for (cause, step), names in causes.items():
        print_status("  " + "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
        print_error(RetbenchError(cause, step), as_json=False)
