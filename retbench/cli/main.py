"""The command `retbench`: registers all subcommands and the global options."""

import io
import logging
import os
import sys
import traceback
from importlib.metadata import version as get_installed_version
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
    overlap,
    plan,
    push,
    report,
    rerank,
    run,
    show,
    study,
    verify,
)
from retbench.cli.command import Verb
from retbench.cli.examples import format_examples
from retbench.engines.remote_code import TRUST_VARIABLE
from retbench.errors import redact_secrets

app = typer.Typer(
    name="retbench",
    help="Compare language models as dense retrievers, zero-shot and fine-tuned.",
    no_args_is_help=True,
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
app.command("push")(push.push)
app.command("import")(import_.import_)
app.add_typer(study.app, name="study")
app.command("list")(list_cards.list_cards)
app.command("show")(show.show)
app.command("fetch")(fetch.fetch)
app.command("plan")(plan.plan)
app.command("overlap")(overlap.overlap)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
for group_name, group in (("", app), ("study ", study.app), ("cache ", cache.app)):
    for registered in group.registered_commands:
        registered.cls, registered.epilog = Verb, format_examples(f"{group_name}{registered.name}")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"retbench {get_installed_version('retbench')}")
        raise typer.Exit


@app.callback()
def set_global_options(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only results and errors, no progress.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print more details.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", envvar=TRUST_VARIABLE, help="Run Python code from model repositories (SECURITY.md)."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set the verbosity, and whether Python code from model repositories may run."""
    if trust:
        os.environ[TRUST_VARIABLE] = "1"  # worker processes inherit it
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("retbench").setLevel(level)


class _TracebackPrinter:
    """Prints the traceback of a bug without the keys of the environment, which its message may quote."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, Exception):
            sys.stderr.write(redact_secrets("".join(traceback.format_exception(problem))))
            sys.exit(1)


def main() -> None:
    """The command `retbench`. Whatever the terminal's encoding is, any text can be printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _TracebackPrinter():
        app()
