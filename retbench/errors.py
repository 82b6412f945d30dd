"""One family of errors: each says what happened, what to do next, and which exit code it means.

RetbenchError
├── UsageError        2  a name, option or combination that does not exist
│   └── InapplicableError   a method that does not apply to a model: the cell is skipped
├── MissingError      3  data, weights or a package that is not here yet
├── DataError         4  something that is here and wrong: a card, a collection, a checksum, a vector
└── ResourceError     5  this machine is too small: disk, memory
    └── ShardNotWrittenError  a shard that did not fit on the disk

The command line prints `cause` and `next_step` in two lines and leaves with `exit_code`; anything that is not a
RetbenchError is a bug and keeps its traceback.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
PARTLY_DONE = 1
MAX_SUGGESTIONS = 12  # names in a message; a reader wants a hint, not the catalog
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
MIN_SECRET_LENGTH = 8  # characters of a secret; a shorter one would tear words apart


def redact_secrets(text: str) -> str:
    """The text without the keys in this process's environment, which others may have put into their words."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH:
            text = text.replace(value, "***")
    return text


class RetbenchError(Exception):
    """An expected problem; whatever it quotes, it tells no key."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str) -> None:
        self.cause = redact_secrets(cause)
        self.next_step = redact_secrets(next_step)
        super().__init__(self.cause)

    def __reduce__(self) -> tuple[type["RetbenchError"], tuple[str, str]]:
        """Errors cross process borders, so they must survive pickling with both lines."""
        return type(self), (self.cause, self.next_step)


class UsageError(RetbenchError):
    """The command asks for something that does not exist."""

    exit_code = 2


class InapplicableError(UsageError):
    """The method cannot be used with this model; the cell is skipped, not failed."""


class MissingError(RetbenchError):
    """Something has to be fetched or installed first."""

    exit_code = 3


class DataError(RetbenchError):
    """Something is there and wrong."""

    exit_code = 4


class ResourceError(RetbenchError):
    """The machine is too small for this."""

    exit_code = 5


class ShardNotWrittenError(ResourceError):
    """A shard was computed and could not be written; the caller that knows the plan says how much space it needs."""


class BadVectorError(Exception):
    """A vector is zero, NaN or infinite; the caller that has the texts names the document."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


DISK_FULL_MESSAGES = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT))
OUT_OF_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", os.strerror(errno.ENOMEM))


def convert_to_resource_error(problem: BaseException) -> ResourceError | None:
    """What a library met when disk or memory ran out; libraries of other languages have only their words for it."""
    words = str(problem)
    first = (words.splitlines() or [type(problem).__name__])[0]
    if any(short in words for short in DISK_FULL_MESSAGES):
        return ResourceError(
            f"the disk is full or cannot be written: {first}",
            "make room, or name another --out or RETBENCH_CACHE; then run the same command: what is finished is kept",
        )
    if isinstance(problem, MemoryError) or any(short in words for short in OUT_OF_MEMORY_MESSAGES):
        return ResourceError(
            f"memory ran out: {first}",
            "end what else is running, or give --set dtype=bfloat16 or a smaller --set max_length (in training --set "
            "batch.caching=true or smaller batch.tokens); then run the same command: what is finished is kept",
        )
    return None


@contextmanager
def reraise_resource_errors() -> Iterator[None]:
    """Inside, a lack of disk or memory is the ResourceError it is, whoever meets it first."""
    try:
        yield
    except RetbenchError:
        raise
    except Exception as problem:
        if told := convert_to_resource_error(problem):
            raise told from problem
        raise


def suggest_names(name: str, known: Iterable[str]) -> str:
    """A phrase offering the known names nearest to a misspelt one."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - MAX_SUGGESTIONS} more (retbench list)" if len(names) > MAX_SUGGESTIONS else ""
    return f"known: {', '.join(names[:MAX_SUGGESTIONS])}{more}"
