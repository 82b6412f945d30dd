"""Progress on stderr: a live line on a terminal, now and then a plain one elsewhere, and one a finished phase."""

import sys
import time
from functools import cached_property

from rich.progress import BarColumn, Progress, TextColumn

from retbench.cli.verb import tell
from retbench.records.meter import Reach

EVERY = 15  # seconds between plain lines: a log should show life without being flooded


class Pace:
    """What was done in a phase, how fast, and how long the rest will take."""

    def __init__(self, unit: str, reach: Reach = lambda: None) -> None:
        self.unit, self.reach = unit, reach
        self.done = self.total = self.tokens = self.left = self.found = 0
        self.started = self.first = time.monotonic()

    @cached_property
    def peak(self) -> float | None:
        """Tokens a second at most."""
        return self.reach()

    def step(self, done: int, total: int, tokens: int, left: int) -> None:
        """Some more is done; what has no tokens beside others that have was found, not computed."""
        if not self.tokens and not tokens:
            self.first = time.monotonic()  # finding is fast and says nothing about computing
            self.found += done
        self.done, self.total = self.done + done, total
        self.tokens, self.left = self.tokens + tokens, left

    def seconds_left(self) -> float | None:
        """By tokens where they are counted: texts come from long to short, so their number would mislead."""
        now = time.monotonic()
        if self.tokens:
            return self.left * (now - self.first) / self.tokens
        return (self.total - self.done) * (now - self.started) / self.done if self.done and not self.left else None

    def text(self) -> str:
        """One line of figures."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}" if self.total else ""]
        seconds = time.monotonic() - self.first
        if self.tokens and seconds:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
            if self.peak and self.tokens / seconds <= self.peak:  # else it was measured wrong, and says nothing
                parts.append(f"{self.tokens / seconds / self.peak:.0%} of the peak")
            parts.append(f"{(self.done - self.found) / seconds:,.1f} {self.unit}/s")
        left = self.seconds_left()
        if left is not None and self.total:
            parts.append(f"{_duration(left)} left")
        return ", ".join(filter(None, parts))


class Live:
    """Shows a meter's phases as they happen."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.pace = Pace("")
        self.told = 0.0

    def begin(self, phase: str, unit: str, reach: Reach) -> None:
        """A phase starts."""
        self.pace, self.told = Pace(unit, reach), time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console

            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(phase, total=None, figures="")
            self.bar.start()

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some more of it is done."""
        self.pace.step(done, total, tokens, left)
        if self.bar:
            figures = f"{self.pace.text()}, {_resident()}"
            self.bar.update(self.bar.task_ids[0], completed=self.pace.done, total=total, figures=figures)
        elif time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            tell(f"    {self.pace.text()}, {_resident()}")

    def end(self, phase: str, seconds: float) -> None:
        """The phase is over."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        pace = self.pace
        amount = f", {pace.done:,} {pace.unit}, {pace.done / seconds:,.0f} a second" if pace.done and seconds else ""
        speed = f", {pace.tokens / seconds:,.0f} tokens/s" if pace.tokens and seconds else ""
        tell(f"  {phase}: {seconds:.1f} s{amount}{speed}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _resident() -> str:
    from retbench.engines.memory import peak_mb

    return f"{peak_mb() / 1000:.1f} GB at most"
