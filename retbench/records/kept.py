"""A kept run as a report needs it: the record, where it lies, and the main score of every query.

What does not hang together is refused by name: settings that do not give the settings-id, or a score that the queries
do not add up to, mean that a file was edited or half copied.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retbench.errors import DataError
from retbench.records.record import Record
from retbench.store.key import digest

PER_QUERY = "per_query.parquet"
AGAIN = "remove its folder and run the cell again"


class DamagedError(DataError):
    """A record that was cut short or changed after it was written."""


@dataclass(frozen=True)
class Kept:
    """One finished run."""

    folder: Path
    record: Record
    queries: tuple[str, ...]
    values: NDArray[np.float64]  # the main score of each query, in the order of `queries`

    @property
    def metric(self) -> str:
        """The task's main metric."""
        return str(self.record.cards["task"]["metric"])

    @property
    def score(self) -> float:
        """The main score."""
        return self.record.scores[self.metric]


def kept(folder: Path, record: Record) -> Kept:
    """Check a run and read its queries' scores."""
    try:
        return _checked(folder, record)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:  # another form than any version wrote
        raise DamagedError(f"{folder}: record.json lacks what a record holds: {problem!r:.80}", AGAIN) from problem


def _checked(folder: Path, record: Record) -> Kept:
    if digest(record.settings)[:12] != record.settings_id:
        raise DamagedError(f"{folder}: the settings do not give the settings-id {record.settings_id}", AGAIN)
    metric = record.cards["task"]["metric"]
    queries, values = query_scores(folder, metric)
    if metric not in record.scores or not math.isclose(values.mean(), record.scores[metric], abs_tol=1e-9):
        raise DamagedError(f"{folder}: {metric} in record.json is not the mean of its queries", AGAIN)
    return Kept(folder, record, queries, values)


def query_scores(folder: Path, metric: str) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """One metric of every query, in the order of the query ids."""
    try:
        table = pq.read_table(folder / PER_QUERY, columns=["query", metric]).sort_by("query")
        return tuple(table.column("query").to_pylist()), table.column(metric).to_numpy()
    except (OSError, KeyError, pa.ArrowInvalid) as problem:
        cause = f"{folder / PER_QUERY} cannot be read: {str(problem).splitlines()[0]}"
        raise DamagedError(cause, AGAIN) from problem
