"""Progress on stderr: a live line that fits the terminal, rare short lines elsewhere, and a line per long phase."""

import math
import sys
import time
from functools import cached_property
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from retbench.cli.command import print_status
from retbench.records.phase_timer import GetPeakThroughput
from retbench.system.durations import format_duration

LOG_INTERVAL, MAX_LOG_INTERVAL = 15, 240  # seconds between plain lines in a log; each wait is twice the last
LOG_FIGURES = 3  # time left, counts and speed
BAR_WIDTH = 16
MIN_SHOWN_SECONDS = 0.5  # shorter phases get no line of their own
TEXT_TOKENS = 6  # what a text costs beside its tokens, in tokens; measured with MiniLM and a decoder of 135M parameters
MIN_RECENT_SECONDS, RECENT_SHARE = 10.0, 0.5  # the recent past: half as long as the time left, at least 10 s


class PhaseProgress:
    """The progress of a phase: work done, speed and time left.

    The work that is left is counted in tokens, and a text counts as some tokens more, because texts are sorted by
    length and many short texts cost more than few long ones. The speed is that of the recent past, so that the estimate
    follows the load of a busy machine.
    """

    def __init__(self, unit: str, get_peak_throughput: GetPeakThroughput = lambda: None) -> None:
        self.unit, self.get_peak_throughput = unit, get_peak_throughput
        self.done = self.total = self.tokens = self.tokens_left = self.done_from_cache = 0
        self.recent_work = self.recent_seconds = 0.0
        self.is_peak_plausible = True
        self.started = self.computing_since = self.last_added = time.monotonic()

    @cached_property
    def peak(self) -> float | None:
        """Peak tokens per second of the device; its measurement does not count as work."""
        before = time.monotonic()
        peak = self.get_peak_throughput()
        spent = time.monotonic() - before
        self.computing_since, self.last_added = self.computing_since + spent, self.last_added + spent
        return peak

    def add(self, done: int, total: int, tokens: int, tokens_left: int) -> None:
        """Add finished work. Items without tokens, before the first with tokens, came from the cache."""
        now = time.monotonic()
        self.done, self.total = self.done + done, total
        self.tokens, self.tokens_left = self.tokens + tokens, tokens_left
        if tokens:
            self._add_recent_work(tokens + TEXT_TOKENS * done, now - self.last_added)
        elif not self.tokens:
            self.computing_since = now  # reading from the cache does not count for the speed
            self.done_from_cache += done
        self.last_added = now

    def _add_recent_work(self, work: float, seconds: float) -> None:
        """Add work, and forget earlier work the faster the less is left."""
        left = self._count_work_left() * self.recent_seconds / self.recent_work if self.recent_work else 0.0
        kept = math.exp(-seconds / max(MIN_RECENT_SECONDS, RECENT_SHARE * left))
        self.recent_work, self.recent_seconds = kept * self.recent_work + work, kept * self.recent_seconds + seconds

    def _count_work_left(self) -> float:
        return self.tokens_left + TEXT_TOKENS * (self.total - self.done) if self.tokens_left else 0.0

    def estimate_seconds_left(self) -> float | None:
        """Estimate by tokens where they are counted, else by items."""
        if self.tokens:
            return self._count_work_left() * self.recent_seconds / self.recent_work
        if not self.done or self.tokens_left:
            return None
        return (self.total - self.done) * (time.monotonic() - self.started) / self.done

    def _compute_share_of_peak(self, tokens_per_second: float) -> float | None:
        """Compute the share; None without a peak, and for the whole phase once the peak turned out to be too low."""
        if not self.peak or tokens_per_second > self.peak:
            self.is_peak_plausible = False
        return tokens_per_second / self.peak if self.peak and self.is_peak_plausible else None

    def list_figures(self) -> list[str]:
        """Format time left, counts, speed, share of the peak and texts per second, the most needed first."""
        seconds_left = self.estimate_seconds_left()
        figures = [f"{format_duration(seconds_left)} left"] if seconds_left is not None and self.total else []
        if self.total:
            figures.append(f"{self.done:,} of {self.total:,} {self.unit}")
        seconds = time.monotonic() - self.computing_since
        if self.tokens and seconds:
            tokens_per_second = self.tokens / seconds
            figures.append(f"{tokens_per_second:,.0f} tokens/s")
            if share := self._compute_share_of_peak(tokens_per_second):
                figures.append(f"{share:.0%} of peak")
            figures.append(f"{(self.done - self.done_from_cache) / seconds:,.1f} {self.unit}/s")
        return figures


def fit_figures(phase: str, figures: list[str], width: int) -> str:
    """Join the time left, the phase and as many further figures as fit."""
    text = "  ".join([*figures[:1], phase])
    for figure in figures[1:]:
        if len(f"{text}, {figure}") > width:
            break
        text = f"{text}, {figure}"
    return text[:width]


class ProgressDisplay:
    """Shows the phases of a timer as they run."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.progress = PhaseProgress("")
        self.last_printed, self.log_interval = 0.0, float(LOG_INTERVAL)

    def begin_phase(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """Start a phase."""
        self.progress, self.last_printed, self.log_interval = PhaseProgress(unit, reach), time.monotonic(), LOG_INTERVAL
        if sys.stderr.isatty():
            from rich.console import Console

            columns = (BarColumn(BAR_WIDTH), TextColumn("{task.description}", markup=False))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(phase, total=None, phase=phase)
            self.bar.start()

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Add finished work."""
        self.progress.add(done, total, tokens, left)
        if self.bar:
            figures = [*self.progress.list_figures(), _format_peak_memory()]
            width = self.bar.console.width - BAR_WIDTH - 1
            text = fit_figures(str(self.bar.tasks[0].fields["phase"]), figures, width)
            self.bar.update(self.bar.task_ids[0], completed=self.progress.done, total=total, description=text)
        elif time.monotonic() - self.last_printed > self.log_interval:
            self.last_printed, self.log_interval = time.monotonic(), min(2 * self.log_interval, MAX_LOG_INTERVAL)
            print_status(f"    {', '.join(self.progress.list_figures()[:LOG_FIGURES])}")

    def end_phase(self, phase: str, seconds: float) -> None:
        """End the phase and print its summary."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        if seconds < MIN_SHOWN_SECONDS:
            return
        progress = self.progress
        amount = (
            f", {progress.done:,} {progress.unit}, {progress.done / seconds:,.0f} per second"
            if progress.done and seconds
            else ""
        )
        speed = f", {progress.tokens / seconds:,.0f} tokens/s" if progress.tokens and seconds else ""
        print_status(f"  {phase}: {seconds:.1f} s{amount}{speed}")


def _format_peak_memory() -> str:
    from retbench.engines.memory import get_peak_memory_mb

    return f"{get_peak_memory_mb() / 1000:.1f} GB peak memory"


class TrainingDisplay:
    """Shows loss, speed, memory and time left: one updated line on a terminal, a line every 15 seconds in a log."""

    def __init__(self) -> None:
        self.last_printed = 0.0

    def __call__(self, facts: dict[str, Any]) -> None:
        """Show the newest metrics."""
        if "score" in facts:
            print_status(f"  step {facts['step']:,}: score {100 * facts['score']:.2f}")
            return
        text = (
            f"  step {facts['step']:,} of {facts['steps']:,}  loss {facts['loss']:.4f}  "
            f"{facts['tokens_per_second']:,.0f} tokens/s  {facts['memory_mb']:,.0f} MB  "
            f"{format_duration(facts['seconds_left'])} left"
        )
        is_last = facts["step"] == facts["steps"]
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if is_last else ""))
            sys.stderr.flush()
        elif time.monotonic() - self.last_printed > LOG_INTERVAL or is_last:
            self.last_printed = time.monotonic()
            print_status(text)
