"""One family of errors: each says what happened, what to do next, and which exit code it means.

RetbenchError
├── UsageError        2  a name, option or combination that does not exist
├── MissingError      3  data, weights or a package that is not here yet
├── DataError         4  something that is here and wrong: a card, a collection, a checksum, a vector
└── ResourceError     5  this machine is too small: disk, memory

The command line prints `cause` and `next_step` in two lines and leaves with `exit_code`; anything that is not a
RetbenchError is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
PARTLY_DONE = 1
SHOWN = 12  # names in a message; a reader wants a hint, not the catalog


class RetbenchError(Exception):
    """An expected problem."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step

    def __reduce__(self) -> tuple[type["RetbenchError"], tuple[str, str]]:
        """Errors cross process borders, so they must survive pickling with both lines."""
        return type(self), (self.cause, self.next_step)


class UsageError(RetbenchError):
    """The command asks for something that does not exist."""

    exit_code = 2


class MissingError(RetbenchError):
    """Something has to be fetched or installed first."""

    exit_code = 3


class DataError(RetbenchError):
    """Something is there and wrong."""

    exit_code = 4


class ResourceError(RetbenchError):
    """The machine is too small for this."""

    exit_code = 5


def closest(name: str, known: Iterable[str]) -> str:
    """A phrase offering the known names nearest to a misspelt one."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - SHOWN} more (retbench list)" if len(names) > SHOWN else ""
    return f"known: {', '.join(names[:SHOWN])}{more}"
