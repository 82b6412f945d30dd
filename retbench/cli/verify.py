"""retbench verify: the referees recompute a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result
from retbench.errors import DataError


@cli_command
def verify(
    run: Annotated[str, typer.Argument(help="A run's folder or the beginning of its settings-id.")],
    results: Annotated[Path, typer.Option(help="The results folder, for a settings-id.")] = Path("results"),
    against: Annotated[
        str | None, typer.Option(help="Another engine instead: it must give the run's vectors on a sample.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="With --against: where the run's weights lie.")] = None,
    as_json: AsJson = False,
) -> int:
    """Let mteb's and beir's evaluators recompute a run; every difference needs a reason."""
    if against:
        return _against(run, results, against, weights, as_json)
    from retbench.pipelines.checks import verify as story

    found = story.verify_run(run, results)
    print_json(found.to_json()) if as_json else print_result(story.format_verification(found))
    return DataError.exit_code if found.unexplained else 0


def _against(run: str, results: Path, engine: str, weights: str | None, as_json: bool) -> int:
    from retbench.pipelines.checks import engine_agreement

    found = engine_agreement.compare_engines(run, results, engine, weights)
    print_json(found.to_json()) if as_json else print_result(engine_agreement.format_agreement(found))
    return 0 if found.agrees else DataError.exit_code
