"""retbench verify: external evaluators score a finished run again."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.command import AsJson, RunName, RunsFolder, RunTask, cli_command, print_json, print_result
from retbench.errors import DataError


@cli_command
def verify(
    run: RunName,
    results: RunsFolder,
    task: RunTask = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this engine instead: it must give the same vectors and scores on a sample."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="With --against: the path of the run's weights.")] = None,
    as_json: AsJson = False,
) -> int:
    """Score a run again with the evaluators of mteb and BEIR and explain every difference."""
    if against:
        from retbench.records.load_run import find_run

        return _verify_against_engine(find_run(run, results, task), against, weights, as_json)
    from retbench.pipelines.checks.verify import format_verification, verify_run

    verification = verify_run(run, results, task)
    print_json(verification.to_json()) if as_json else print_result(format_verification(verification))
    return DataError.exit_code if verification.unexplained else 0


def _verify_against_engine(run: Path, engine: str, weights: str | None, as_json: bool) -> int:
    from retbench.pipelines.checks.engine_agreement import compare_engines, format_agreement

    agreement = compare_engines(run, engine, weights)
    print_json(agreement.to_json()) if as_json else print_result(format_agreement(agreement))
    return 0 if agreement.agrees else DataError.exit_code
