"""The errors of retbench: each has a cause, a next step and an exit code.

RetbenchError
├── UsageError        2  a name, option or combination that does not exist
│   └── InapplicableError   a method that does not apply to a model: the cell is skipped
├── MissingError      3  data, weights or a package that is missing
├── DataError         4  invalid data: a card, a collection, a checksum, a vector
├── ResourceError     5  not enough disk or memory, or no permission
│   └── ShardNotWrittenError  a shard that did not fit on the disk
└── UnexpectedError   1  a bug in one cell, whose traceback is in a file

The command line prints `cause` and `next_step` in two lines and exits with `exit_code`. Any other exception is a bug
and keeps its traceback.
"""

import base64
import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

INTERRUPTED = 130
PARTLY_DONE = 1
MAX_SUGGESTIONS = 12  # names in a message
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
OWN_SECRETS = ("RETBENCH_ENDPOINT_KEY", "HF_TOKEN")  # these are removed even if they are short
MIN_SECRET_LENGTH, MIN_OWN_SECRET_LENGTH = 8, 3  # characters; a shorter value would damage ordinary words
ADDRESS_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


def redact_secrets(text: str) -> str:
    """Remove the API keys and tokens of the environment, and passwords of addresses, from a text.

    The text may quote another library's message.
    """
    for name, value in os.environ.items():
        least = MIN_OWN_SECRET_LENGTH if name in OWN_SECRETS else MIN_SECRET_LENGTH
        if SECRET_NAME.search(name) and len(value.strip()) >= least:
            text = redact_value(text, value.strip())
    return ADDRESS_PASSWORD.sub("***@", text)


def redact_value(text: str, secret: str) -> str:
    """Replace a secret in a text, also where it is encoded for an address, in JSON, or in base 64.

    A short one is replaced only where it is a whole word.
    """
    encoded = secret.encode(errors="surrogateescape")
    forms = {secret, quote(encoded, safe=""), quote_plus(encoded), json.dumps(secret)[1:-1]}
    base64_form = base64.b64encode(encoded).decode().rstrip("=")
    for form in sorted(forms, key=len, reverse=True):
        text = (
            re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
            if len(form) < MIN_SECRET_LENGTH
            else text.replace(form, "***")
        )
    return text.replace(base64_form, "***") if len(base64_form) >= MIN_SECRET_LENGTH else text


class RetbenchError(Exception):
    """An expected problem. Secrets of the environment are removed from its text."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str) -> None:
        self.cause = redact_secrets(cause)
        self.next_step = redact_secrets(next_step)
        super().__init__(self.cause)

    def __reduce__(self) -> tuple[type["RetbenchError"], tuple[str, str]]:
        """Keep both lines when an error is pickled between processes."""
        return type(self), (self.cause, self.next_step)


class UsageError(RetbenchError):
    """The command names something that does not exist."""

    exit_code = 2


class InapplicableError(UsageError):
    """The method does not apply to this model; the cell is skipped, not failed."""


class MissingError(RetbenchError):
    """Something must be fetched or installed first."""

    exit_code = 3


class DataError(RetbenchError):
    """The data is invalid."""

    exit_code = 4


class ResourceError(RetbenchError):
    """The machine has not enough disk or memory."""

    exit_code = 5


class UnexpectedError(RetbenchError):
    """A bug: an exception that nothing expected ended a cell."""


class ShardNotWrittenError(ResourceError):
    """A shard could not be written; the caller, which knows the batch plan, adds the needed disk space."""


class BadVectorError(Exception):
    """A vector is zero, NaN or infinite; the caller, which has the texts, names the document."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


DISK_FULL_MESSAGES = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG))
TOO_MANY_FILES = tuple(os.strerror(code) for code in (errno.EMFILE, errno.ENFILE))
RAISE_LIMIT = "raise the limit of open files, for example ulimit -n 4096; then run the same command: it continues"
UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
OUT_OF_MEMORY_MESSAGES = (  # the fourth is of a library that cannot be loaded under `ulimit -v`
    "out of memory", "can't allocate memory", "not enough memory", "failed to map segment from shared object",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", os.strerror(errno.ENOMEM),
)  # fmt: skip


def convert_to_resource_error(problem: BaseException) -> ResourceError | None:
    """Return a ResourceError if disk or memory ran out or a path cannot be used.

    Native libraries report that only in the message.
    """
    if isinstance(problem, OSError) and problem.errno in UNUSABLE_PATH:
        return ResourceError(
            f"{problem.filename or 'a file'} cannot be used: {problem.strerror}",
            "check the path, its owner and its rights, or give another --out or RETBENCH_CACHE",
        )
    if isinstance(problem, UnicodeEncodeError) and "/" in problem.object:
        return build_path_encoding_error(problem.object)
    message = str(problem)
    first_line = (message.splitlines() or [type(problem).__name__])[0]
    if any(short in message for short in DISK_FULL_MESSAGES):
        return ResourceError(
            f"the disk is full or cannot be written: {first_line}",
            "free disk space, or give another --out or RETBENCH_CACHE; then run the same command: it continues",
        )
    if any(short in message for short in TOO_MANY_FILES):
        return ResourceError(f"too many files are open: {first_line}", RAISE_LIMIT)
    if isinstance(problem, MemoryError) or any(short in message for short in OUT_OF_MEMORY_MESSAGES):
        return ResourceError(
            f"memory ran out: {first_line}",
            "end other programs, or give --set dtype=bfloat16 or a smaller --set max_length (in training --set "
            "batch.gradient_caching=true or smaller batch.max_tokens); then run the same command: it continues",
        )
    return None


def build_write_error(path: object, problem: BaseException, next_step: str) -> ResourceError:
    """Build the error of a file that could not be written; at the limit of open files the next step is another one."""
    reason = getattr(problem, "strerror", None) or str(problem)
    step = RAISE_LIMIT if reason in TOO_MANY_FILES else next_step
    return ResourceError(f"{path} could not be written: {reason}", step)


def build_path_encoding_error(path: object) -> ResourceError:
    """Build the error of a path that is not UTF-8: the libraries for Arrow and safetensors cannot open it.

    In the locale C without Python's UTF-8 mode, no path is, unless it is ASCII.
    """
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        return ResourceError(
            f"the path {str(path)!r} has characters that this locale's encoding, {encoding}, does not have",
            "set PYTHONUTF8=1 or LC_ALL=C.UTF-8, then run the same command",
        )
    return ResourceError(f"the path {str(path)!r} is not UTF-8", "rename the folder, or give another path")


@contextmanager
def reraise_resource_errors() -> Iterator[None]:
    """Raise a ResourceError in place of any library's error about full disk or memory."""
    try:
        yield
    except RetbenchError:
        raise
    except Exception as problem:
        if resource_error := convert_to_resource_error(problem):
            raise resource_error from problem
        raise


def suggest_names(name: str, known: Iterable[str], list_command: str | None = None) -> str:
    """Suggest the known names nearest to a misspelt one; if none is near, the command that lists them, or the first."""
    names = sorted(set(known))
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if len(names) > MAX_SUGGESTIONS and list_command:
        return f"nothing is named like it; `{list_command}` shows the {len(names)} known names"
    return f"known: {join_names(names)}"


def join_names(names: Sequence[str]) -> str:
    """Join names by commas, of many the first."""
    more = f" and {len(names) - MAX_SUGGESTIONS} more" if len(names) > MAX_SUGGESTIONS else ""
    return ", ".join(names[:MAX_SUGGESTIONS]) + more
