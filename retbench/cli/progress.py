"""Progress on stderr: a live line on a terminal, a plain line every 15 seconds elsewhere, and a line per phase."""

import sys
import time
from functools import cached_property

from rich.progress import BarColumn, Progress, TextColumn

from retbench.cli.command import print_status
from retbench.records.phase_timer import GetPeakThroughput

LOG_INTERVAL = 15  # seconds between plain lines in a log


class PhaseProgress:
    """The progress of a phase: work done, speed and time left."""

    def __init__(self, unit: str, get_peak_throughput: GetPeakThroughput = lambda: None) -> None:
        self.unit, self.get_peak_throughput = unit, get_peak_throughput
        self.done = self.total = self.tokens = self.tokens_left = self.done_from_cache = 0
        self.started = self.computing_since = time.monotonic()

    @cached_property
    def peak(self) -> float | None:
        """Peak tokens per second of the device."""
        return self.get_peak_throughput()

    def add(self, done: int, total: int, tokens: int, tokens_left: int) -> None:
        """Add finished work. Items without tokens, before the first with tokens, came from the cache."""
        if not self.tokens and not tokens:
            self.computing_since = time.monotonic()  # reading from the cache does not count for the speed
            self.done_from_cache += done
        self.done, self.total = self.done + done, total
        self.tokens, self.tokens_left = self.tokens + tokens, tokens_left

    def estimate_seconds_left(self) -> float | None:
        """Estimate by tokens where they are counted: texts are sorted by length, so their number would mislead."""
        now = time.monotonic()
        if self.tokens:
            return self.tokens_left * (now - self.computing_since) / self.tokens
        return (
            (self.total - self.done) * (now - self.started) / self.done if self.done and not self.tokens_left else None
        )

    def format_line(self) -> str:
        """Format counts, speed and time left as one line."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}" if self.total else ""]
        seconds = time.monotonic() - self.computing_since
        if self.tokens and seconds:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
            if self.peak and self.tokens / seconds <= self.peak:  # above 1 the peak was measured wrongly
                parts.append(f"{self.tokens / seconds / self.peak:.0%} of peak")
            parts.append(f"{(self.done - self.done_from_cache) / seconds:,.1f} {self.unit}/s")
        seconds_left = self.estimate_seconds_left()
        if seconds_left is not None and self.total:
            parts.append(f"{_format_duration(seconds_left)} left")
        return ", ".join(filter(None, parts))


class ProgressDisplay:
    """Shows the phases of a timer as they run."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.progress = PhaseProgress("")
        self.last_printed = 0.0

    def begin_phase(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """Start a phase."""
        self.progress, self.last_printed = PhaseProgress(unit, reach), time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console

            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(phase, total=None, figures="")
            self.bar.start()

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Add finished work."""
        self.progress.add(done, total, tokens, left)
        if self.bar:
            figures = f"{self.progress.format_line()}, {_format_peak_memory()}"
            self.bar.update(self.bar.task_ids[0], completed=self.progress.done, total=total, figures=figures)
        elif time.monotonic() - self.last_printed > LOG_INTERVAL:
            self.last_printed = time.monotonic()
            print_status(f"    {self.progress.format_line()}, {_format_peak_memory()}")

    def end_phase(self, phase: str, seconds: float) -> None:
        """End the phase and print its summary."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        progress = self.progress
        amount = (
            f", {progress.done:,} {progress.unit}, {progress.done / seconds:,.0f} per second"
            if progress.done and seconds
            else ""
        )
        speed = f", {progress.tokens / seconds:,.0f} tokens/s" if progress.tokens and seconds else ""
        print_status(f"  {phase}: {seconds:.1f} s{amount}{speed}")


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _format_peak_memory() -> str:
    from retbench.engines.memory import get_peak_memory_mb

    return f"{get_peak_memory_mb() / 1000:.1f} GB peak memory"
