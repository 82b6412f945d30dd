"""The phase timer: how long each phase of a cell took; it also reports progress while a phase runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class AdvanceProgress(Protocol):
    """Reports the progress since the last call."""

    def __call__(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Report `done` of `total`, and the tokens that were computed and that are left."""
        ...


GetPeakThroughput = Callable[[], float | None]  # tokens per second; called when there are tokens


class ProgressListener(Protocol):
    """Receives the progress of phases."""

    def begin_phase(self, phase: str, unit: str, peak_throughput: GetPeakThroughput) -> None:
        """Start a phase."""
        ...

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Add progress to the phase."""
        ...

    def end_phase(self, phase: str, seconds: float) -> None:
        """End the phase."""
        ...


class NoProgress:
    """Ignores progress."""

    def begin_phase(self, phase: str, unit: str, peak_throughput: GetPeakThroughput) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Do nothing."""

    def end_phase(self, phase: str, seconds: float) -> None:
        """Do nothing."""


class PhaseTimer:
    """Seconds by phase, in the order of their start."""

    def __init__(self, show: ProgressListener) -> None:
        self.progress = show
        self.seconds: dict[str, float] = {}

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add seconds to a phase, also those of an interrupted run, which would look too fast without them."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def time_phase(
        self, name: str, unit: str = "", peak_throughput: GetPeakThroughput = lambda: None
    ) -> Iterator[AdvanceProgress]:
        """Time the code inside; the value of `with` reports progress."""
        self.progress.begin_phase(name, unit, peak_throughput)
        started = time.perf_counter()
        try:
            yield self.progress.advance
        finally:
            seconds = time.perf_counter() - started
            self.add_seconds(name, seconds)
            self.progress.end_phase(name, seconds)
