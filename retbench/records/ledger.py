"""The ledger: records in a results folder, one folder a run.

results/<suite>/<task>/<model>/<settings-id>/
    record.json         written last: a folder without it is an interrupted run and does not count
    per_query.parquet   every metric of every query, and the raw scores behind the ranking
    run.trec.gz         our order with strictly falling scores, so that any evaluator gives our figures
    sample.json         the exact first query and document, text and token ids
results/<suite>/<task>/<model>/<method>.failed.json   a cell that could not be finished, and why
"""

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from retbench.cards.home import path_part
from retbench.errors import DataError, ResourceError
from retbench.records.failure import ANY_METHOD, ENDING, Failure, labelled, read_failure
from retbench.records.kept import PER_QUERY, Kept, kept
from retbench.records.migrate import migrate
from retbench.records.record import Record

RECORD = "record.json"


class Run(NamedTuple):
    """What a finished run leaves besides its record."""

    rankings: Mapping[str, Sequence[str]]
    raw_scores: Mapping[str, Sequence[float]]
    per_query: Mapping[str, Mapping[str, float]]
    sample: dict[str, Any]


@dataclass(frozen=True)
class Scan:
    """Everything in a results folder: finished runs, notes of cells that failed, and what could not be read."""

    runs: list[Kept] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


@dataclass(frozen=True)
class Ledger:
    """A results folder."""

    root: Path

    def folder(self, suite: str, task: str, model: str, settings_id: str) -> Path:
        """Where one run lives."""
        return self.root.joinpath(*map(path_part, (suite, task, model)), settings_id)

    def find(self, folder: Path) -> Record | None:
        """The finished record in a run's folder."""
        file = folder / RECORD
        return read(file) if file.exists() else None

    def write(self, record: Record, run: Run) -> Path:
        """Store a run, all or nothing; what an interrupted try left is replaced."""
        folder = self.folder(record.suite, record.task, record.model, record.settings_id)
        partial = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.partial")
        try:
            partial.mkdir(parents=True)
            _write_files(partial, record, run)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            rerank = [one["rerank"] for one in record.settings["rerankers"]]
            for method in (labelled(record.method, rerank), ANY_METHOD):
                _note(folder.parent, method).unlink(missing_ok=True)
        except OSError as problem:
            raise ResourceError(
                f"{folder} could not be written: {problem.strerror}", "make room or name another --out"
            ) from problem
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def note(self, failure: Failure) -> None:
        """Remember a cell that could not be finished."""
        file = _note(self.folder(failure.suite, failure.task, failure.model, ""), failure.label)
        try:
            failure.write(file)
        except OSError as problem:
            raise ResourceError(
                f"{file} could not be written: {problem.strerror}", "make room or name another --out"
            ) from problem

    def scan(self) -> Scan:
        """Everything here; what cannot be read is named and left out."""
        scan = Scan()
        for file in self.files():
            try:
                scan.runs.append(kept(file.parent, read(file)))
            except DataError as problem:
                scan.problems.append(problem)
        for file in sorted(self.root.glob(f"*/*/*/*{ENDING}")):
            try:
                scan.failures.append(read_failure(file))
            except DataError as problem:
                scan.problems.append(problem)
        return scan

    def files(self) -> list[Path]:
        """The record.json of every finished run, read or not."""
        found = sorted(self.root.glob(f"*/*/*/*/{RECORD}"))
        return [file for file in found if not file.parent.name.endswith(".partial")]

    def records(self) -> Iterator[tuple[Path, Record]]:
        """Every finished run, in the order of the paths."""
        for file in self.files():
            yield file.parent, read(file)


def read(file: Path) -> Record:
    """One record.json."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return Record(**migrate(facts, str(file)))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as problem:
        raise DataError(f"{file} is not a record: {problem}", "remove its folder and run the cell again") from problem


def _note(folder: Path, method: str) -> Path:
    return folder / f"{path_part(method)}{ENDING}"


def _write_files(folder: Path, record: Record, run: Run) -> None:
    (folder / "run.trec.gz").write_bytes(trec(run.rankings, f"{record.model}:{record.method}"))
    columns: dict[str, list[Any]] = {"query": list(run.per_query)}
    for metric in next(iter(run.per_query.values())):
        columns[metric] = [scores[metric] for scores in run.per_query.values()]
    columns["raw_scores"] = [list(map(float, run.raw_scores[query])) for query in run.per_query]
    table = pa.table(columns)
    raw = table.schema.get_field_index("raw_scores")
    narrow = table.column("raw_scores").cast(pa.list_(pa.float32()))
    pq.write_table(table.set_column(raw, "raw_scores", narrow), folder / PER_QUERY)
    (folder / "sample.json").write_text(json.dumps(run.sample, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False), encoding="utf-8")


def trec(rankings: Mapping[str, Sequence[str]], tag: str) -> bytes:
    """A TREC run; the score falls by one a rank, so ties cannot be broken any other way than ours."""
    lines = []
    for query, documents in rankings.items():
        for rank, document in enumerate(documents, start=1):
            score = len(documents) - rank + 1
            lines.append(f"{word(query)} Q0 {word(document)} {rank} {score} {word(tag)}\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


def word(text: str) -> str:
    """An id as a run file has it, one word: white space and control characters are percent-encoded."""
    return "".join(quote(c) if c.isspace() or not c.isprintable() else c for c in text)
