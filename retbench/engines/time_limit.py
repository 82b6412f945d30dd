"""A time limit for what a model folder brings: programs of chat templates, patterns of adapters."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from retbench.errors import DataError

MAX_SECONDS = 20.0  # a template or a pattern takes less than a millisecond


@contextmanager
def limit_seconds(seconds: float, what: str) -> Iterator[None]:
    """Raise an error in what runs longer. Only the main thread of a process can be interrupted; others are not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise DataError(f"{what} does not end within {seconds:g} seconds", "do not trust this model")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
