"""The meter: how long each phase of a cell took, told to whoever shows progress while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class AdvanceProgress(Protocol):
    """Tells what was done since the last call."""

    def __call__(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some of `total`; where tokens are computed, how many, and how many are left."""
        ...


GetPeakThroughput = Callable[[], float | None]  # tokens a second at most, where that can be known; asked once there are tokens


class ProgressListener(Protocol):
    """A place where progress is shown."""

    def begin_phase(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """A phase starts."""
        ...

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some more of it is done."""
        ...

    def end_phase(self, phase: str, seconds: float) -> None:
        """The phase is over."""
        ...


class NoProgress:
    """Shows nothing."""

    def begin_phase(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """Say nothing."""

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Say nothing."""

    def end_phase(self, phase: str, seconds: float) -> None:
        """Say nothing."""


class PhaseTimer:
    """Seconds by phase, in the order they were entered."""

    def __init__(self, show: ProgressListener) -> None:
        self.progress = show
        self.seconds: dict[str, float] = {}

    def add_seconds(self, name: str, seconds: float) -> None:
        """Count what earlier processes already spent on a phase, so that an interruption makes nothing look faster."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def time_phase(self, name: str, unit: str = "", reach: GetPeakThroughput = lambda: None) -> Iterator[AdvanceProgress]:
        """Time what is inside; the value handed out reports progress."""
        self.progress.begin_phase(name, unit, reach)
        started = time.perf_counter()
        try:
            yield self.progress.advance
        finally:
            seconds = time.perf_counter() - started
            self.add_seconds(name, seconds)
            self.progress.end_phase(name, seconds)
