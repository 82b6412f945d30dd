"""The meter: how long each phase of a cell took, told to whoever shows progress while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tells what was done since the last call."""

    def __call__(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some of `total`; where tokens are computed, how many, and how many are left."""
        ...


Reach = Callable[[], float | None]  # tokens a second at most, where that can be known; asked once there are tokens


class Show(Protocol):
    """A place where progress is shown."""

    def begin(self, phase: str, unit: str, reach: Reach) -> None:
        """A phase starts."""
        ...

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some more of it is done."""
        ...

    def end(self, phase: str, seconds: float) -> None:
        """The phase is over."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, phase: str, unit: str, reach: Reach) -> None:
        """Say nothing."""

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Say nothing."""

    def end(self, phase: str, seconds: float) -> None:
        """Say nothing."""


class Meter:
    """Seconds by phase, in the order they were entered."""

    def __init__(self, show: Show) -> None:
        self.show = show
        self.seconds: dict[str, float] = {}

    def carry(self, name: str, seconds: float) -> None:
        """Count what earlier processes already spent on a phase, so that an interruption makes nothing look faster."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def phase(self, name: str, unit: str = "", reach: Reach = lambda: None) -> Iterator[Advance]:
        """Time what is inside; the value handed out reports progress."""
        self.show.begin(name, unit, reach)
        started = time.perf_counter()
        try:
            yield self.show.advance
        finally:
            seconds = time.perf_counter() - started
            self.carry(name, seconds)
            self.show.end(name, seconds)
