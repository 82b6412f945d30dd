"""Helpers of all commands: output, option parsing, and errors in two lines with an exit code."""

import functools
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand

from retbench.cli.complete_names import complete_models, complete_tasks
from retbench.cli.terminal_text import remove_control_characters
from retbench.errors import INTERRUPTED, PARTLY_DONE, RetbenchError, UsageError, reraise_resource_errors, suggest_names
from retbench.system.user_config import DEFAULT_RESULTS, get_results_folder

P = ParamSpec("P")
KindT = TypeVar("KindT", bound=StrEnum)
OUTPUT_OPTIONS = "Output"
SILENT_SECONDS = 0.8
_has_printed = threading.Event()  # whether this command has printed anything


def choose_results_folder() -> Path:
    """Return the configured results folder. A default is computed before a command begins, so errors end here."""
    try:
        with reraise_resource_errors():
            return get_results_folder()
    except RetbenchError as error:
        print_error(error, as_json=False)
        raise typer.Exit(error.exit_code) from error


RunsFolder = Annotated[
    Path,
    typer.Option(
        default_factory=choose_results_folder, show_default=DEFAULT_RESULTS, help="The results folder to find runs in."
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        help="A run's folder, the first characters of its settings-id, or its model's name.",
        autocompletion=complete_models,
    ),
]
RunTask = Annotated[
    str | None,
    typer.Option(
        "--task", help="The task of the run, if its model has runs on several.", autocompletion=complete_tasks
    ),
]
ResultsOut = Annotated[
    Path,
    typer.Option(
        default_factory=choose_results_folder,
        show_default=DEFAULT_RESULTS,
        help="The results folder.",
        rich_help_panel=OUTPUT_OPTIONS,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout and nothing else.", rich_help_panel=OUTPUT_OPTIONS),
]


class Verb(TyperCommand):
    """A command whose options have environment variables: RETBENCH_RUN_DRY_RUN is `run --dry-run`.

    docs/configuration.md explains them once, so the help does not name them beside every option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in self._list_options():
            option.show_envvar = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the variables before the arguments are parsed."""
        for option in self._list_options():
            if option.envvar is None and ctx.auto_envvar_prefix:
                name = max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
                option.envvar = f"{ctx.auto_envvar_prefix}_{name}"
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def _list_options(self) -> list[Any]:
        return [param for param in self.params if param.param_type_name == "option"]


def cli_command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command. An unexpected exception keeps its traceback."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with reraise_resource_errors(), announce_loading():
                code = function(*args, **kwargs) or 0
        except RetbenchError as error:
            print_error(error, as_json=bool(kwargs.get("as_json")))
            code = error.exit_code
        except EOFError as problem:  # click would only print "Aborted."
            raise RuntimeError("a file ended too early") from problem
        except KeyboardInterrupt:
            print_status("interrupted: finished cells and shards are kept; run the same command to continue")
            code = INTERRUPTED
        raise typer.Exit(code)

    return command


@contextmanager
def announce_loading() -> Iterator[None]:
    """Say on a terminal that something is going on, if nothing was printed for a while."""
    if is_quiet() or not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(SILENT_SECONDS, _print_loading)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_loading() -> None:
    if not _has_printed.is_set():
        print_status("loading ...")


def print_error(error: RetbenchError, as_json: bool, label: str = "error") -> None:
    """Print the cause and the next step: two lines, or one JSON object."""
    if as_json:
        print_json({"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code})
        return
    sys.stderr.write(remove_control_characters(f"{label}: {error.cause}\nnext:  {error.next_step}\n"))


def print_skipped(problems: Sequence[RetbenchError]) -> int:
    """Print the errors of skipped inputs, and return the exit code of a result without them."""
    for problem in problems:
        print_error(problem, as_json=False)
    return PARTLY_DONE if problems else 0


def print_result(text: str) -> None:
    """Print a result on stdout."""
    _has_printed.set()
    text = remove_control_characters(text)
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def print_json(document: Any) -> None:
    """Print a result as one JSON document, in ASCII if stdout has not all of its characters."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    print_result(json.dumps(document, indent=1) if find_unprintable_character(text) else text)


def find_unprintable_character(text: str) -> str | None:
    """The first character of a text that the encoding of stdout does not have. It would be printed as `\\xe9`."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError as problem:
        return text[problem.start]
    return None


def write_result(file: Path, text: str) -> None:
    """Write a result to a file atomically; a device or a pipe is written directly."""
    from retbench.system.durable_files import write_file_atomically

    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", "create it, or give another --out")
    is_regular = not file.exists() or (file.is_file() and not file.is_symlink())  # not /dev/stdout or a pipe
    write_file_atomically(file, text.encode()) if is_regular else file.write_text(text, encoding="utf-8")


def is_quiet() -> bool:
    """Whether -q was given."""
    return logging.getLogger("retbench").level >= logging.ERROR


def print_status(text: str) -> None:
    """Print a status line on stderr, unless -q was given."""
    _has_printed.set()
    if not is_quiet():
        sys.stderr.write(f"{remove_control_characters(text)}\n")
        sys.stderr.flush()


def find_kind(argument: str, kinds: type[KindT]) -> KindT:
    """Find a kind by its name, in the singular or in the plural: `list model` and `show models` work too."""
    found = next((kind for kind in kinds if _to_singular(kind) == _to_singular(argument.lower())), None)
    if found is None:
        raise UsageError(f"there is no kind called {argument!r}", suggest_names(argument, kinds))
    return found


def _to_singular(kind: str) -> str:
    return "study" if kind == "studies" else kind.removesuffix("s")


def parse_assignments(assignments: list[str] | None, example: str) -> dict[str, str]:
    """Parse repeated `--set KEY=VALUE` options."""
    pairs = [text.partition("=") for text in assignments or []]
    key_without_value = next((key for key, equals, _ in pairs if not equals), None)
    if key_without_value is not None:
        raise UsageError(f"--set {key_without_value} has no value", f"write KEY=VALUE, for example --set {example}")
    return {key: value for key, _, value in pairs}


def parse_overrides(assignments: list[str] | None, example: str) -> dict[str, Any]:
    """Parse repeated `--set KEY=VALUE` options, with integers as int."""
    return {
        key: int(value) if value.isascii() and value.isdecimal() else value
        for key, value in parse_assignments(assignments, example).items()
    }
