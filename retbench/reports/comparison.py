"""The comparison of two runs: the settings that differ, the scores, and a significance test.

Settings are printed with quotes around text, so that a space at the end of a prompt is visible.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retbench.records.record import Record
from retbench.reports.ranks import ALPHA
from retbench.scoring.significance import (
    MIN_SIGNIFICANT_QUERIES,
    ConfidenceInterval,
    WinCounts,
    compute_bootstrap_interval,
    compute_detectable_difference,
    compute_effect_size,
    compute_paired_p_value,
    count_wins,
)

NOT_STATED = "not stated"


@dataclass(frozen=True)
class SettingDifference:
    """One setting that differs between two runs."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class PairedTest:
    """The significance test of the main metric per query: A minus B."""

    metric: str
    queries: int
    difference: float
    interval: ConfidenceInterval
    p_value: float
    effect: float
    detectable: float | None
    wins: WinCounts


@dataclass(frozen=True)
class QueryChange:
    """One query whose score differs; with its text and top documents if the collection is available."""

    query: str
    a: float
    b: float
    text: str | None = None
    top_a: tuple[str, ...] = ()
    top_b: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The result of `retbench compare`."""

    a: str
    b: str
    task: str
    settings: list[SettingDifference]
    scores: dict[str, tuple[float, float]]
    test: PairedTest | None
    moved: list[QueryChange]
    remarks: list[str]


def flatten_record(record: Record) -> dict[str, str]:
    """All fields of a record that may explain a difference, by dotted name."""
    machine = dict(record.machine)
    truncated = {role: side["truncated"] for role, side in record.texts.items() if "truncated" in side}
    dtype = record.texts.get("dtype", {})
    stated = {"model": record.model, "method": record.method, "task": record.task, "settings": record.settings}
    return _flatten(
        {**stated, "texts truncated": truncated, "dtype": dtype, "collection": record.collection, "machine": machine},
        "",
    )


def _flatten(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        parts = [_flatten(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {name: repr(value)}


def list_setting_differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[SettingDifference]:
    """All settings whose values differ."""
    names = dict.fromkeys([*a, *b])
    differences = [SettingDifference(name, a.get(name, NOT_STATED), b.get(name, NOT_STATED)) for name in names]
    return [difference for difference in differences if difference.a != difference.b]


def compute_paired_test(metric: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> PairedTest:
    """Test the difference between two runs' scores on the same queries."""
    differences = a - b
    return PairedTest(
        metric,
        len(a),
        float(differences.mean()),
        compute_bootstrap_interval(differences),
        compute_paired_p_value(a, b),
        compute_effect_size(a, b),
        compute_detectable_difference(a, b),
        count_wins(a, b),
    )


def format_comparison(comparison: Comparison) -> str:
    """The comparison as text."""
    lines = [f"A  {comparison.a}", f"B  {comparison.b}", ""]
    lines += [*_format_settings(comparison.settings), "", f"{'score':<16}{'A':>8}{'B':>8}{'A - B':>8}"]
    for metric, (a, b) in comparison.scores.items():
        lines.append(f"{metric:<16}{100 * a:>8.2f}{100 * b:>8.2f}{100 * (a - b):>+8.2f}")
    if comparison.test:
        lines += ["", *_format_test(comparison.test)]
    for change in comparison.moved:
        lines += ["", *_format_query_change(change)]
    return "\n".join([*lines, *([""] if comparison.remarks else []), *comparison.remarks])


def _format_settings(settings: list[SettingDifference]) -> list[str]:
    if not settings:
        return ["All recorded settings are equal."]
    lines = [f"{len(settings)} settings differ:"]
    for setting in settings:
        lines += [f"  {setting.name}", f"    A {setting.a}", f"    B {setting.b}"]
    return lines


def _format_test(test: PairedTest) -> list[str]:
    low, high = test.interval
    return [
        f"{test.metric} over {test.queries:,} queries: A - B = {100 * test.difference:+.2f} "
        f"(95% interval {100 * low:+.2f} to {100 * high:+.2f}), p = {test.p_value:.4f}, effect size {test.effect:+.2f}",
        f"A wins {test.wins.wins:,}, ties {test.wins.ties:,}, loses {test.wins.losses:,}",
        _describe_power(test),
    ]


def _describe_power(test: PairedTest) -> str:
    """Say which difference the test can find; with few queries it finds none."""
    smallest = 2.0 ** (1 - test.queries)
    if test.queries < MIN_SIGNIFICANT_QUERIES:
        return (
            f"no difference over {test.queries} queries can be significant at alpha {ALPHA}: "
            f"the smallest p-value of this test is {smallest:.4f}"
        )
    if test.detectable is None:
        return (
            f"over {test.queries} queries only a difference of the same sign on every query is significant at "
            f"alpha {ALPHA} (p = {smallest:.4f})"
        )
    return (
        f"over {test.queries:,} queries that vary as these do, a true difference of {100 * test.detectable:.2f} is "
        f"significant in about 80% of cases (alpha {ALPHA})"
    )


def _format_query_change(change: QueryChange) -> list[str]:
    lines = [f"query {change.query}: A {100 * change.a:.1f}, B {100 * change.b:.1f}"]
    if change.text is not None:
        lines.append(f"  {change.text}")
    lines += [f"  A {number}. {line}" for number, line in enumerate(change.top_a, start=1)]
    return lines + [f"  B {number}. {line}" for number, line in enumerate(change.top_b, start=1)]
