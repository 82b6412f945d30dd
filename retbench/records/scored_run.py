"""A finished run for reports: its record, its folder, and the score of every query by one metric.

An inconsistent run is refused: if the settings do not give the settings-id, or a score is not the mean of its queries,
a file was edited or copied in part.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retbench.errors import DataError, build_path_encoding_error
from retbench.records.record import Record
from retbench.store.digest import compute_digest
from retbench.system.file_kinds import require_regular_file

PER_QUERY_FILE = "per_query.parquet"
RUN_AGAIN = "remove its folder and run the cell again"


class DamagedRecordError(DataError):
    """A record that was truncated or changed after it was written."""


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and its score per query."""

    folder: Path
    record: Record
    queries: tuple[str, ...]
    values: NDArray[np.float64]  # the score of each query, in the order of `queries`
    metric: str

    @property
    def score(self) -> float:
        """The mean score."""
        return self.record.scores[self.metric]


def load_scored_run(folder: Path, record: Record, metric: str | None = None) -> ScoredRun:
    """Verify a run and read the scores of its queries, by the task's main metric or another one."""
    try:
        return _verify_and_load(folder, record, metric or str(record.cards["task"]["metric"]))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:  # a format that no version wrote
        cause = f"{folder}: record.json is incomplete: {problem!r:.80}"
        raise DamagedRecordError(cause, RUN_AGAIN) from problem


def _verify_and_load(folder: Path, record: Record, metric: str) -> ScoredRun:
    if compute_digest(record.settings)[:12] != record.settings_id:
        raise DamagedRecordError(f"{folder}: the settings do not give the settings-id {record.settings_id}", RUN_AGAIN)
    queries, values = _read_query_scores(folder)
    wrong_means = [name for name in values if not math.isclose(values[name].mean(), record.scores[name], abs_tol=1e-9)]
    if wrong_means or values.keys() != record.scores.keys():
        raise DamagedRecordError(f"{folder}: the scores in record.json are not the means of its queries", RUN_AGAIN)
    if metric not in values:
        raise DataError(f"{folder} has no {metric}", f"choose one that it has: {', '.join(values)}")
    return ScoredRun(folder, record, queries, values[metric], metric)


def _read_query_scores(folder: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.float64]]]:
    """Read the query ids, sorted, and every metric of each query."""
    with _translate_damage(folder), pq.ParquetFile(folder / PER_QUERY_FILE) as file:
        names = [name for name in file.schema_arrow.names if name != "raw_scores"]
        table = file.read(columns=names, use_threads=False)  # waking threads costs more than reading a small file
        ids = table.column("query").to_pylist()
        order = sorted(range(len(ids)), key=ids.__getitem__)
        values = {name: table.column(name).to_numpy()[order] for name in names if name != "query"}
        return tuple(ids[row] for row in order), values


def read_raw_scores(folder: Path) -> dict[str, list[float]]:
    """Read the retrieval scores of each query's documents, in the order of the ranking."""
    with _translate_damage(folder):
        table = pq.read_table(folder / PER_QUERY_FILE, columns=["query", "raw_scores"])
        return dict(zip(table.column("query").to_pylist(), table.column("raw_scores").to_pylist(), strict=True))


@contextmanager
def _translate_damage(folder: Path) -> Iterator[None]:
    """Raise DamagedRecordError for errors of pyarrow, and for a pipe in place of the file."""
    try:
        require_regular_file(folder / PER_QUERY_FILE)
        yield
    except UnicodeEncodeError as problem:  # pyarrow cannot open it; the run is sound
        error = build_path_encoding_error(folder)
        raise DamagedRecordError(error.cause, error.next_step) from problem
    except (OSError, KeyError, pa.ArrowException, DataError) as problem:
        cause = f"{folder / PER_QUERY_FILE} cannot be read: {str(problem).splitlines()[0]}"
        raise DamagedRecordError(cause, RUN_AGAIN) from problem
