"""retbench export: writes finished runs as mteb result files."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, RunsFolder, RunTask, cli_command, print_json, print_result
from retbench.cli.complete_names import complete_models


@cli_command
def export(
    *,
    run: Annotated[
        list[str],
        typer.Argument(help="Folders of runs, settings-ids or names of models.", autocompletion=complete_models),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the mteb result files.")] = Path("mteb-results"),
    results: RunsFolder,
    task: RunTask = None,
    as_json: AsJson = False,
) -> None:
    """Write finished runs in mteb's result format, ready to submit to its leaderboard."""
    from retbench.pipelines.mteb_bridge.export_results import export_results

    files = [file.as_posix() for file in export_results(run, out, results, task)]
    print_json([{"file": file} for file in files]) if as_json else print_result("\n".join(files))
