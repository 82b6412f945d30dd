"""The comparison of two runs: the settings that differ, the scores, and a significance test.

Values of settings have quotes around text, so that a space at the end of a prompt is visible.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retbench.records.record import Record
from retbench.scoring.significance import (
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
    roles = {role: side for role, side in record.texts.items() if isinstance(side, dict)}  # others are of the search
    truncated = {role: side["truncated"] for role, side in roles.items() if "truncated" in side}
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
