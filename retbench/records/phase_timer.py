"""The phase timer: how long each phase of a cell took; it also reports progress while a phase runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from retbench.records.energy import EnergyMeter


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


@dataclass(frozen=True)
class MeteredProgress:
    """Passes progress on, and lets the energy meter read its counters now and then."""

    show: ProgressListener
    meter: EnergyMeter

    def begin_phase(self, phase: str, unit: str, peak_throughput: GetPeakThroughput) -> None:
        """Start a phase."""
        self.show.begin_phase(phase, unit, peak_throughput)

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Add progress to the phase."""
        self.meter.read_if_due()
        self.show.advance(done, total, tokens, left)

    def end_phase(self, phase: str, seconds: float) -> None:
        """End the phase."""
        self.show.end_phase(phase, seconds)


class PhaseTimer:
    """Seconds by phase, in the order of their start; with a meter also the energy of all phases."""

    def __init__(self, show: ProgressListener, meter: EnergyMeter | None = None) -> None:
        self.progress = MeteredProgress(show, meter) if meter and meter.counters else show
        self.meter = meter
        self.has_earlier_seconds = False
        self.seconds: dict[str, float] = {}

    def add_earlier_seconds(self, name: str, seconds: float) -> None:
        """Add the seconds of stored vectors or of an interrupted run, which would look too fast without them."""
        self.has_earlier_seconds = self.has_earlier_seconds or seconds > 0
        self._add_seconds(name, seconds)

    def collect_energy(self) -> dict[str, float]:
        """Return the joules of this run; nothing if a part of the work was done earlier, with unknown energy."""
        return {} if self.meter is None or self.has_earlier_seconds else self.meter.collect_facts()

    def _add_seconds(self, name: str, seconds: float) -> None:
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
            self._add_seconds(name, seconds)
            self.progress.end_phase(name, seconds)
