"""An unexpected exception in one cell: its traceback goes into a file, the cell fails, and the other cells are run."""

import hashlib
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retbench.errors import RetbenchError, UnexpectedError, redact_secrets, reraise_resource_errors
from retbench.system.user_config import get_cache_folder

MAX_SHOWN_CHARACTERS = 200

log = logging.getLogger(__name__)


@contextmanager
def reraise_unexpected_errors() -> Iterator[None]:
    """Raise a RetbenchError in place of any other exception."""
    try:
        with reraise_resource_errors():
            yield
    except RetbenchError:
        raise
    except Exception as problem:
        raise _build_unexpected_error(problem) from problem


def _build_unexpected_error(problem: Exception) -> UnexpectedError:
    lines = str(problem).strip().splitlines() or [""]
    cause = f"unexpected {type(problem).__name__}: {lines[0][:MAX_SHOWN_CHARACTERS]}"
    text = redact_secrets("".join(traceback.format_exception(problem)))
    try:
        place = f"in {_write_traceback(text)}"
    except OSError:  # the cache cannot be written
        log.error("%s", text)
        place = "above"
    return UnexpectedError(cause, f"this is a bug of retbench: report it with the traceback {place}")


def _write_traceback(text: str) -> Path:
    """Write a traceback; the same one is written once."""
    file = get_cache_folder() / "tracebacks" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
    return file
