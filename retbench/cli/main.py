"""Wires the verbs together; nothing else happens here."""

import logging
import os
from importlib.metadata import version as installed
from typing import Annotated

import typer

from retbench.cli import (
    cache,
    compare,
    doctor,
    export,
    fetch,
    finetune,
    import_,
    inspect,
    list_cards,
    plan,
    report,
    rerank,
    run,
    show,
    study,
    verify,
)
from retbench.engines.remote_code import TRUST

app = typer.Typer(
    name="retbench",
    help="Which language model makes the best dense retriever, zero-shot and fine-tuned, and the proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "RETBENCH", "help_option_names": ["-h", "--help"]},
)

app.command("run")(run.run)
app.command("rerank")(rerank.rerank)
app.command("finetune")(finetune.finetune)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.add_typer(study.app, name="study")
app.command("list")(list_cards.list_cards)
app.command("show")(show.show)
app.command("fetch")(fetch.fetch)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retbench {installed('retbench')}")
        raise typer.Exit


@app.callback()
def set_global_options(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more about what is done and why.")] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust-remote-code", envvar=TRUST, help="Let code that lies beside weights run (SECURITY.md)."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set how much is said, and whether code beside weights may run."""
    if trust:
        os.environ[TRUST] = "1"  # workers are told the same way
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("retbench").setLevel(level)


def main() -> None:
    """The command `retbench`."""
    app()
