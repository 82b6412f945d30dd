"""What every verb shares: expected problems end in two lines and an exit code, bugs keep their traceback."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec

import typer

from retbench.errors import INTERRUPTED, PARTLY_DONE, RetbenchError, shortage_told

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def verb(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with shortage_told():
                code = function(*args, **kwargs) or 0
        except RetbenchError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
            code = error.exit_code
        except KeyboardInterrupt:
            tell("interrupted: finished cells and shards are kept; the same command continues")
            code = INTERRUPTED
        raise typer.Exit(code)

    return command


def fail(error: RetbenchError, as_json: bool) -> None:
    """Say what happened and what to do: two lines, or one JSON object."""
    if as_json:
        put_json({"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code})
        return
    sys.stderr.write(f"error: {error.cause}\nnext:  {error.next_step}\n")


def left_out(problems: Sequence[RetbenchError]) -> int:
    """Say what could not be read and is missing from the answer; the exit code of an answer without it."""
    for problem in problems:
        fail(problem, as_json=False)
    return PARTLY_DONE if problems else 0


def put(text: str) -> None:
    """A result, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def put_json(document: Any) -> None:
    """A result as one JSON document."""
    put(json.dumps(document, indent=1, ensure_ascii=False))


def quiet() -> bool:
    """Whether -q was given."""
    return logging.getLogger("retbench").level >= logging.ERROR


def tell(text: str) -> None:
    """A remark on the way, on stderr, unless -q was given."""
    if not quiet():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
