"""retbench import: published results of others, to stand beside ours."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result


@cli_command
def import_(
    path: Annotated[Path, typer.Argument(help="An mteb result file, or a folder of them.", exists=True)],
    results: Annotated[Path, typer.Option(help="The results folder they are to stand in.")] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Import mteb result files as published rows; `report --reference` shows them, marked, beside ours."""
    from retbench.pipelines.mteb_bridge.import_results import import_results

    found = import_results(path, results)
    if as_json:
        rows = [(file, one) for file, members in found.items() for one in members]
        print_json([{"table": str(f), "model": one.model, "task": one.task, "split": one.split} for f, one in rows])
        return
    for file, members in found.items():
        print_result(f"{members[0].model}: {len(members)} tasks in {file}")
