"""Two runs side by side: first everything in which they differ, then whether their scores do.

A difference in a setting is shown as it is written, with quotes around text, because a space at the end of a prompt
is a difference too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retbench.records.record import Record
from retbench.scoring.significance import (
    Interval,
    Wins,
    bootstrap_interval,
    detectable,
    effect_size,
    paired_test,
    wins,
)

UNSTATED = "not stated"


@dataclass(frozen=True)
class Setting:
    """One setting in which two sides differ."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Test:
    """The main metric, query by query: A minus B."""

    metric: str
    queries: int
    difference: float
    interval: Interval
    p_value: float
    effect: float
    detectable: float | None
    wins: Wins


@dataclass(frozen=True)
class Moved:
    """One query that one side answers better; texts where the collection is at hand."""

    query: str
    a: float
    b: float
    text: str | None = None
    top_a: tuple[str, ...] = ()
    top_b: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What `retbench compare` says."""

    a: str
    b: str
    task: str
    settings: list[Setting]
    scores: dict[str, tuple[float, float]]
    test: Test | None
    moved: list[Moved]
    remarks: list[str]


def facts(record: Record) -> dict[str, str]:
    """Everything a record states that may explain a difference, by dotted name."""
    machine = dict(record.machine)
    texts = {role: side.get("truncated") for role, side in record.texts.items()}
    named = {"model": record.model, "method": record.method, "task": record.task, "settings": record.settings}
    return _flat({**named, "texts truncated": texts, "collection": record.collection, "machine": machine}, "")


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        inner = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
        return {key: text for found in inner for key, text in found.items()}
    return {name: repr(value)}


def differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[Setting]:
    """Every name whose value is not the same on both sides."""
    names = dict.fromkeys([*a, *b])
    pairs = [Setting(name, a.get(name, UNSTATED), b.get(name, UNSTATED)) for name in names]
    return [pair for pair in pairs if pair.a != pair.b]


def tested(metric: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> Test:
    """The test of two columns over the same queries."""
    gap = a - b
    return Test(
        metric, len(a), float(gap.mean()), bootstrap_interval(gap), paired_test(a, b), effect_size(a, b),
        detectable(a, b), wins(a, b),
    )  # fmt: skip


def text(comparison: Comparison) -> str:
    """The comparison for a reader."""
    lines = [f"A  {comparison.a}", f"B  {comparison.b}", ""]
    lines += [*_settings(comparison.settings), "", f"{'score':<16}{'A':>8}{'B':>8}{'A - B':>8}"]
    for metric, (a, b) in comparison.scores.items():
        lines.append(f"{metric:<16}{100 * a:>8.2f}{100 * b:>8.2f}{100 * (a - b):>+8.2f}")
    if comparison.test:
        lines += ["", *_test(comparison.test)]
    for moved in comparison.moved:
        lines += ["", *_moved(moved)]
    return "\n".join([*lines, *([""] if comparison.remarks else []), *comparison.remarks])


def _settings(settings: list[Setting]) -> list[str]:
    if not settings:
        return ["every stated setting is the same"]
    lines = [f"{len(settings)} settings differ:"]
    for one in settings:
        lines += [f"  {one.name}", f"    A {one.a}", f"    B {one.b}"]
    return lines


def _test(test: Test) -> list[str]:
    low, high = test.interval
    return [
        f"{test.metric} over {test.queries:,} queries: A - B = {100 * test.difference:+.2f} "
        f"(95% interval {100 * low:+.2f} to {100 * high:+.2f}), p = {test.p_value:.4f}, effect size {test.effect:+.2f}",
        f"A wins {test.wins.wins:,}, ties {test.wins.ties:,}, loses {test.wins.losses:,}",
        *([] if test.detectable is None else [_reach(test.detectable)]),
    ]


def _reach(detectable: float) -> str:
    return f"so many queries would show a difference of {100 * detectable:.2f} in four of five cases (at 0.05)"


def _moved(moved: Moved) -> list[str]:
    lines = [f"query {moved.query}: A {100 * moved.a:.1f}, B {100 * moved.b:.1f}"]
    if moved.text is not None:
        lines.append(f"  {moved.text}")
    lines += [f"  A {number}. {line}" for number, line in enumerate(moved.top_a, start=1)]
    return lines + [f"  B {number}. {line}" for number, line in enumerate(moved.top_b, start=1)]
