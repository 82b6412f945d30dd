"""The ledger: records in a results folder, one folder a run.

results/<suite>/<task>/<model>/<settings-id>/
    record.json         written last: a folder without it is an interrupted run and does not count
    per_query.parquet   every metric of every query, and the raw scores behind the ranking
    run.trec.gz         our order with strictly falling scores, so that any evaluator gives our figures
    sample.json         the exact first query and document, text and token ids
results/<suite>/<task>/<model>/<method>.failed.json   a cell that could not be finished, and why
"""

import errno
import filecmp
import gzip
import json
import logging
import os
import re
import shutil
import socket
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from retbench.cards.text_parsers import parse_json
from retbench.cards.user_config import encode_path_part
from retbench.errors import DataError, ResourceError
from retbench.records.failure import ANY_METHOD, FAILURE_SUFFIX, Failure, format_label, read_failure
from retbench.records.migrate import migrate_record
from retbench.records.record import Record
from retbench.records.scored_run import PER_QUERY_FILE, RUN_AGAIN, DamagedRecordError, ScoredRun, load_scored_run
from retbench.store.shard_store import flush_to_disk

log = logging.getLogger(__name__)

RECORD_FILE, TREC_FILE = "record.json", "run.trec.gz"
ENCODED_CHARACTER = re.compile("%(?=[0-9A-Fa-f]{2})")


class RunFiles(NamedTuple):
    """What a finished run leaves besides its record."""

    rankings: Mapping[str, Sequence[str]]
    raw_scores: Mapping[str, Sequence[float]]
    per_query: Mapping[str, Mapping[str, float]]
    sample: dict[str, Any]


@dataclass(frozen=True)
class ResultsScan:
    """Everything in a results folder: finished runs, notes of cells that failed, and what could not be read."""

    runs: list[ScoredRun] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder."""

    root: Path

    def get_run_folder(self, suite: str, task: str, model: str, settings_id: str) -> Path:
        """Where one run lives."""
        return self.root.joinpath(*map(encode_path_part, (suite, task, model)), settings_id)

    def find_record(self, folder: Path) -> Record | None:
        """The finished record in a run's folder; one that was damaged since is told and does not count."""
        if not (folder / RECORD_FILE).exists():
            return None
        try:
            return _read_intact_record(folder)
        except DamagedRecordError as problem:
            log.warning("%s: the cell is run again", problem.cause)
            return None

    def require_writable(self) -> None:
        """Refuse before the work what cannot be written after it; root may write anything, but not on such a disk."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError as problem:
            raise ResourceError(f"{self.root} cannot be written: {problem.strerror}", "name another --out") from problem

    def write_run(self, record: Record, run: RunFiles) -> Path:
        """Store a run, all or nothing; what an interrupted try left is replaced."""
        folder = self.get_run_folder(record.suite, record.task, record.model, record.settings_id)
        partial = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
        try:
            _remove_orphans(folder)
            partial.mkdir(parents=True)
            _write_files(partial, record, run)
            _publish(partial, folder)
            rerank = [one["rerank"] for one in record.settings["rerankers"]]
            self.remove_failures(folder, format_label(record.method, rerank), ANY_METHOD)
        except OSError as problem:
            raise ResourceError(
                f"{folder} could not be written: {problem.strerror or problem}", "make room or name another --out"
            ) from problem
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def write_failure(self, failure: Failure) -> None:
        """Remember a cell that could not be finished."""
        file = _get_failure_path(self.get_run_folder(failure.suite, failure.task, failure.model, ""), failure.label)
        try:
            failure.write(file)
        except OSError as problem:
            raise ResourceError(
                f"{file} could not be written: {problem.strerror}", "make room or name another --out"
            ) from problem

    def remove_failures(self, folder: Path, *labels: str) -> None:
        """Take the notes of a cell away whose run is done, now or long ago."""
        for label in labels:
            with suppress(OSError):  # there is none; or the disk is only read, which stops no run that is done
                _get_failure_path(folder.parent, label).unlink()

    def scan_runs(self) -> ResultsScan:
        """Everything here; what cannot be read is named and left out."""
        scan = ResultsScan()
        for file in self.list_record_files():
            try:
                scan.runs.append(load_scored_run(file.parent, read_record(file)))
            except DataError as problem:
                scan.problems.append(problem)
        for file in sorted(self.root.glob(f"*/*/*/*{FAILURE_SUFFIX}")):
            try:
                scan.failures.append(read_failure(file))
            except DataError as problem:
                scan.problems.append(problem)
        return scan

    def list_record_files(self) -> list[Path]:
        """The record.json of every finished run, read or not."""
        found = sorted(self.root.glob(f"*/*/*/*/{RECORD_FILE}"))
        return [file for file in found if not file.parent.name.endswith(".partial")]


def read_record(file: Path) -> Record:
    """One record.json."""
    try:
        facts = parse_json(file.read_text(encoding="utf-8"))
        return Record(**migrate_record(facts, str(file)))
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise DamagedRecordError(f"{file} is not a record: {problem}", RUN_AGAIN) from problem


def _read_intact_record(folder: Path) -> Record:
    """A record that hangs together; what lies beside it is read to its end, for both files carry checksums."""
    record = load_scored_run(folder, read_record(folder / RECORD_FILE)).record
    try:
        pq.read_table(folder / PER_QUERY_FILE, page_checksum_verification=True)
        if not (folder / TREC_FILE).stat().st_size:  # to gzip, nothing is a whole file
            raise EOFError(f"{TREC_FILE} is empty")
        with gzip.open(folder / TREC_FILE) as run:
            while run.read(1 << 20):
                pass
    except (OSError, EOFError, KeyError, zlib.error, pa.ArrowException) as problem:
        raise DamagedRecordError(f"{folder} is damaged: {str(problem).splitlines()[0]}", RUN_AGAIN) from problem
    return record


def _remove_orphans(folder: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote this run."""
    ours = f"{folder.name}.{socket.gethostname()}-"
    for orphan in folder.parent.glob("*.partial"):  # Python keeps a pattern it has compiled
        if not orphan.name.startswith(ours):
            continue
        writer = int(orphan.name.removesuffix(".partial").rpartition("-")[2])
        if writer == os.getpid() or not _is_process_alive(writer):
            shutil.rmtree(orphan, ignore_errors=True)


def _is_process_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _publish(partial: Path, folder: Path) -> None:
    """Put a run in its place. The same one, finished meanwhile by another process, stays: at no moment is it gone."""
    if _is_same_run(partial, folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not _is_same_run(partial, folder):
            raise
    flush_to_disk(folder.parent)


def _is_same_run(partial: Path, folder: Path) -> bool:
    """Whether the run is there already, whole and with the same scores and ranking."""
    try:
        _read_intact_record(folder)
    except (OSError, DataError):
        return False
    return all(
        (folder / name).is_file() and filecmp.cmp(partial / name, folder / name, False) for name in (PER_QUERY_FILE, TREC_FILE)
    )


def _get_failure_path(folder: Path, method: str) -> Path:
    return folder / f"{encode_path_part(method)}{FAILURE_SUFFIX}"


def _write_files(folder: Path, record: Record, run: RunFiles) -> None:
    (folder / TREC_FILE).write_bytes(format_trec_run(run.rankings, f"{record.model}:{record.method}"))
    columns: dict[str, list[Any]] = {"query": list(run.per_query)}
    for metric in next(iter(run.per_query.values())):
        columns[metric] = [scores[metric] for scores in run.per_query.values()]
    columns["raw_scores"] = [list(map(float, run.raw_scores[query])) for query in run.per_query]
    table = pa.table(columns)
    raw = table.schema.get_field_index("raw_scores")
    narrow = table.column("raw_scores").cast(pa.list_(pa.float32()))
    pq.write_table(table.set_column(raw, "raw_scores", narrow), folder / PER_QUERY_FILE, write_page_checksum=True)
    (folder / "sample.json").write_text(json.dumps(run.sample, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        flush_to_disk(path)


def format_trec_run(rankings: Mapping[str, Sequence[str]], tag: str) -> bytes:
    """A TREC run; the score falls by one a rank, so ties cannot be broken any other way than ours."""
    lines = []
    for query, documents in rankings.items():
        for rank, document in enumerate(documents, start=1):
            score = len(documents) - rank + 1
            lines.append(f"{encode_id(query)} Q0 {encode_id(document)} {rank} {score} {encode_id(tag)}\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


def encode_id(text: str) -> str:
    """An id as a run file has it, one word: white space and control characters are percent-encoded.

    So is a percent sign that would read as the start of such a code; `unworded` gives every id back.
    """
    plain = ENCODED_CHARACTER.sub("%25", text)
    return "".join(quote(c) if c.isspace() or not c.isprintable() else c for c in plain)


def decode_id(text: str) -> str:
    """The id behind a word of our own run files."""
    return unquote(text)
