"""retbench export: finished runs as mteb result files."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result


@cli_command
def export(
    run: Annotated[list[str], typer.Argument(help="Folders of runs, or the beginnings of their settings-ids.")],
    out: Annotated[Path, typer.Option(help="The folder for mteb's results.")] = Path("mteb-results"),
    results: Annotated[Path, typer.Option(help="The results folder, for a settings-id.")] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write finished runs in mteb's result format, as it takes them for its board."""
    from retbench.pipelines.mteb_bridge import export_results as story

    files = [file.as_posix() for file in story.export_results(run, out, results)]
    print_json([{"file": file} for file in files]) if as_json else print_result("\n".join(files))
