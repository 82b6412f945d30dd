"""retbench import: imports published mteb results to show beside retbench's own."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, ResultsOut, cli_command, print_json, print_result


@cli_command
def import_(
    path: Annotated[Path, typer.Argument(help="An mteb result file, or a folder of them.", exists=True)],
    results: ResultsOut,
    as_json: AsJson = False,
) -> None:
    """Import mteb result files as published scores; `report --reference` shows them, marked, beside your own."""
    from retbench.pipelines.mteb_bridge.import_results import import_results

    results_by_table = import_results(path, results)
    if as_json:
        rows = [(file, result) for file, model_results in results_by_table.items() for result in model_results]
        print_json([{"table": str(f), "model": r.model, "task": r.task, "split": r.split} for f, r in rows])
        return
    for file, model_results in results_by_table.items():
        scores = "1 score" if len(model_results) == 1 else f"{len(model_results)} scores"
        print_result(f"{model_results[0].model}: {scores} in {file}")
