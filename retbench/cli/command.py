"""What every verb shares: expected problems end in two lines and an exit code, bugs keep their traceback."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from retbench.errors import INTERRUPTED, PARTLY_DONE, RetbenchError, UsageError, reraise_resource_errors

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def cli_command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with reraise_resource_errors():
                code = function(*args, **kwargs) or 0
        except RetbenchError as error:
            print_error(error, as_json=bool(kwargs.get("as_json")))
            code = error.exit_code
        except KeyboardInterrupt:
            print_status("interrupted: finished cells and shards are kept; the same command continues")
            code = INTERRUPTED
        raise typer.Exit(code)

    return command


def print_error(error: RetbenchError, as_json: bool) -> None:
    """Say what happened and what to do: two lines, or one JSON object."""
    if as_json:
        print_json({"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code})
        return
    sys.stderr.write(f"error: {error.cause}\nnext:  {error.next_step}\n")


def print_skipped(problems: Sequence[RetbenchError]) -> int:
    """Say what could not be read and is missing from the answer; the exit code of an answer without it."""
    for problem in problems:
        print_error(problem, as_json=False)
    return PARTLY_DONE if problems else 0


def print_result(text: str) -> None:
    """A result, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def print_json(document: Any) -> None:
    """A result as one JSON document."""
    print_result(json.dumps(document, indent=1, ensure_ascii=False))


def write_result(file: Path, text: str) -> None:
    """A result in a file that is either complete or not there; a device or a pipe just takes it."""
    from retbench.store.shard_store import write_whole

    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", "make it, or name another --out")
    plain = not file.exists() or (file.is_file() and not file.is_symlink())  # and not /dev/stdout or a pipe
    write_whole(file, text.encode()) if plain else file.write_text(text, encoding="utf-8")


def is_quiet() -> bool:
    """Whether -q was given."""
    return logging.getLogger("retbench").level >= logging.ERROR


def print_status(text: str) -> None:
    """A remark on the way, on stderr, unless -q was given."""
    if not is_quiet():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def parse_assignments(words: list[str] | None, example: str) -> dict[str, str]:
    """What `--set KEY=VALUE` said, however often it was given."""
    pairs = [word.partition("=") for word in words or []]
    wrong = next((key for key, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise UsageError(f"--set {wrong} has no value", f"write KEY=VALUE, for example --set {example}")
    return {key: value for key, _, value in pairs}


def parse_overrides(words: list[str] | None, example: str) -> dict[str, Any]:
    """The same, with whole numbers as numbers."""
    return {
        key: int(value) if value.isascii() and value.isdecimal() else value
        for key, value in parse_assignments(words, example).items()
    }
