"""retbench compare: compares the settings and scores of two runs."""

from dataclasses import asdict
from typing import Annotated

import typer

from retbench.cli.command import AsJson, RunsFolder, cli_command, print_json, print_result
from retbench.cli.complete_names import complete_metrics, complete_models, complete_tasks

RUN_HELP = "A run's folder, a settings-id, a model's name, an mteb result file (.json), or a TREC run file."


@cli_command
def compare(
    a: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=complete_models)],
    b: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=complete_models)],
    results: RunsFolder,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task of a TREC run, or of a model's run: a task card's name or a BEIR folder.",
            autocompletion=complete_tasks,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Test by this metric, such as recall@100 (default: the task's main metric).",
            autocompletion=complete_metrics,
        ),
    ] = None,
    queries: Annotated[int, typer.Option(help="The number of queries to show, largest score change first.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: is the difference significant, which settings differ, and which queries changed most."""
    from retbench.cards.task import parse_metric
    from retbench.pipelines.runs.compare import compare_runs
    from retbench.reports.comparison_text import format_comparison

    comparison = compare_runs(a, b, results, task, queries, parse_metric(metric))
    print_json(asdict(comparison)) if as_json else print_result(format_comparison(comparison))
