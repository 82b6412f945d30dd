"""The results folder: one folder per run.

results/<suite>/<task>/<model>/<settings-id>/
    record.json         written last: a folder without it is an interrupted run and is ignored
    per_query.parquet   every metric of every query, and the raw scores behind the ranking
    run.trec.gz         the ranking with strictly falling scores, so that every evaluator gives the same figures
    sample.json         the exact first query and document, text and token ids
results/<suite>/<task>/<model>/<method>.failed.json   a cell that could not be finished, and why
"""

import filecmp
import gzip
import json
import logging
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from retbench.errors import DataError, build_write_error
from retbench.records.failure import ANY_METHOD, FAILURE_SUFFIX, Failure, format_label, read_failure
from retbench.records.migrate import migrate_record
from retbench.records.record import Record
from retbench.records.record_types import find_wrong_type
from retbench.records.scored_run import PER_QUERY_FILE, RUN_AGAIN, DamagedRecordError, ScoredRun, load_scored_run
from retbench.records.shared_values import SharedValues
from retbench.store.digest import compute_digest
from retbench.system.durable_files import create_writable_folder, flush_to_disk, rename_durably
from retbench.system.file_kinds import require_regular_file, require_utf8_path
from retbench.system.text_parsers import parse_json
from retbench.system.user_config import encode_path_part

log = logging.getLogger(__name__)

RECORD_FILE, TREC_FILE = "record.json", "run.trec.gz"
COST_CHECKSUM = "checksum"  # of the costs; settings and scores are verified by their id and by the per-query scores
MAX_READS, WAIT_SECONDS = 10, 0.02  # of a run that another process replaces
ENCODED_CHARACTER = re.compile("%(?=[0-9A-Fa-f]{2})")


class RunFiles(NamedTuple):
    """The content of a run's files beside its record."""

    rankings: Mapping[str, Sequence[str]]
    raw_scores: Mapping[str, Sequence[float]]
    per_query: Mapping[str, Mapping[str, float]]
    sample: dict[str, Any]


@dataclass(frozen=True)
class ResultsScan:
    """Everything in a results folder: finished runs, failed cells, and files that could not be read."""

    runs: list[ScoredRun] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder."""

    root: Path

    def get_run_folder(self, suite: str, task: str, model: str, settings_id: str) -> Path:
        """Return the folder of a run."""
        return self.root.joinpath(*map(encode_path_part, (suite, task, model)), settings_id)

    def find_record(self, folder: Path) -> Record | None:
        """Return the finished record in a run's folder; None if it is absent or damaged, with a warning."""
        if not (folder / RECORD_FILE).exists():
            return None
        try:
            return _read_intact_record(folder)
        except DamagedRecordError as problem:
            log.warning("%s: the cell is run again", problem.cause)
            return None

    def require_writable(self) -> None:
        """Raise before the work if the folder cannot be written."""
        create_writable_folder(self.root)

    def write_run(self, record: Record, run: RunFiles) -> Path:
        """Write a run completely or not at all; the files of an interrupted run are replaced."""
        folder = self.get_run_folder(record.suite, record.task, record.model, record.settings_id)
        partial = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
        try:
            _remove_orphans(folder)
            partial.mkdir(parents=True)
            _write_run_files(partial, record, run)
            _replace_run(partial, folder)
            rerank = [reranker["rerank"] for reranker in record.settings["rerankers"]]
            self.remove_failures(folder, format_label(record.method, rerank), ANY_METHOD)
        except OSError as problem:
            raise build_write_error(folder, problem, "make room or name another --out") from problem
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def write_failure(self, failure: Failure) -> None:
        """Write the file of a failed cell."""
        file = _get_failure_path(self.get_run_folder(failure.suite, failure.task, failure.model, ""), failure.label)
        try:
            failure.write(file)
        except OSError as problem:
            raise build_write_error(file, problem, "make room or name another --out") from problem

    def remove_failures(self, folder: Path, *labels: str) -> None:
        """Remove the failure files of a cell that is finished."""
        for label in labels:
            with suppress(OSError):  # there is none, or the disk is read-only
                _get_failure_path(folder.parent, label).unlink()

    def scan_runs(self, metric: str | None = None) -> ResultsScan:
        """Read everything, with scores by the main metric or `metric`; files that cannot be read become `problems`."""
        require_utf8_path(self.root)
        results_scan, shared = ResultsScan(), SharedValues()
        for file in self.list_record_files():
            try:
                results_scan.runs.extend(map(shared.share_parts, _read_scored_run(file, metric)))
            except DataError as problem:
                results_scan.problems.append(problem)
        for file in sorted(self.root.glob(f"*/*/*/*{FAILURE_SUFFIX}")):
            try:
                results_scan.failures.append(read_failure(file))
            except DataError as problem:
                results_scan.problems.append(problem)
        return results_scan

    def list_record_files(self) -> list[Path]:
        """List the record.json of every finished run."""
        files = sorted(self.root.glob(f"*/*/*/*/{RECORD_FILE}"))
        return [file for file in files if not file.parent.name.endswith(".partial")]


def read_record(file: Path) -> Record:
    """Read one record.json."""
    require_regular_file(file)
    try:
        facts = parse_json(file.read_text(encoding="utf-8"))
        record = Record(**migrate_record(facts, str(file)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise DamagedRecordError(f"{file} is not a record: {problem}", RUN_AGAIN) from problem
    if wrong_type := find_wrong_type(record):
        raise DamagedRecordError(f"{file} is not a record: {wrong_type}", RUN_AGAIN)
    if record.cost.pop(COST_CHECKSUM, None) not in (None, compute_digest(record.cost)):  # early records have none
        raise DamagedRecordError(f"{file}: its costs changed since the run", RUN_AGAIN)
    return record


def _read_intact_record(folder: Path) -> Record:
    """Read a record and verify it; the files beside it are read completely, because both have checksums."""
    record = load_scored_run(folder, read_record(folder / RECORD_FILE)).record
    try:
        require_regular_file(folder / TREC_FILE)
        pq.read_table(folder / PER_QUERY_FILE, page_checksum_verification=True)
        if not (folder / TREC_FILE).stat().st_size:  # gzip accepts an empty file
            raise EOFError(f"{TREC_FILE} is empty")
        with gzip.open(folder / TREC_FILE) as run:
            while run.read(1 << 20):
                pass
    except (OSError, EOFError, KeyError, zlib.error, pa.ArrowException, DataError) as problem:
        raise DamagedRecordError(f"{folder} is damaged: {str(problem).splitlines()[0]}", RUN_AGAIN) from problem
    return record


def _remove_orphans(folder: Path) -> None:
    """Remove the partial folders of processes of this machine that were killed while they wrote this run."""
    prefix = f"{folder.name}.{socket.gethostname()}-"
    for orphan in folder.parent.glob("*.partial"):  # a fixed pattern: Python caches compiled patterns
        if not orphan.name.startswith(prefix):
            continue
        writer = int(orphan.name.removesuffix(".partial").rpartition("-")[2])
        if writer == os.getpid() or not _is_process_alive(writer):
            shutil.rmtree(orphan, ignore_errors=True)


def _is_process_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _replace_run(partial: Path, folder: Path) -> None:
    """Rename a run to its final folder. If another process finished the same run meanwhile, its folder stays.

    An older run is renamed first and removed afterwards, so that it is absent only for a moment.
    """
    if _is_same_run(partial, folder):
        return
    old = folder.with_name(f"{folder.name}.{socket.gethostname()}-old-{os.getpid()}.partial")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):  # there is none
        rename_durably(folder, old)
    try:
        rename_durably(partial, folder)
    except OSError:
        if not _is_same_run(partial, folder):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_scored_run(file: Path, metric: str | None) -> list[ScoredRun]:
    """Read a run that another process may replace meanwhile; empty if it is gone."""
    for _ in range(MAX_READS):
        before = _identify(file)
        try:
            return [load_scored_run(file.parent, read_record(file), metric)]
        except DataError:
            if before is not None and _identify(file) == before:
                raise
        time.sleep(WAIT_SECONDS)
    return []


def _identify(file: Path) -> tuple[int, int] | None:
    """The identity of a file; None if it is absent."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _is_same_run(partial: Path, folder: Path) -> bool:
    """Return whether the folder has the same run, intact and with the same scores and ranking."""
    try:
        _read_intact_record(folder)
    except (OSError, DataError):
        return False
    names = (PER_QUERY_FILE, TREC_FILE)
    return all((folder / n).is_file() and filecmp.cmp(partial / n, folder / n, False) for n in names)


def _get_failure_path(folder: Path, method: str) -> Path:
    return folder / f"{encode_path_part(method)}{FAILURE_SUFFIX}"


def _write_run_files(folder: Path, record: Record, run: RunFiles) -> None:
    (folder / TREC_FILE).write_bytes(format_trec_run(run.rankings, f"{record.model}:{record.method}"))
    columns: dict[str, list[Any]] = {"query": list(run.per_query)}
    for metric in next(iter(run.per_query.values())):
        columns[metric] = [scores[metric] for scores in run.per_query.values()]
    columns["raw_scores"] = [list(map(float, run.raw_scores[query])) for query in run.per_query]
    table = pa.table(columns)
    raw = table.schema.get_field_index("raw_scores")
    float32_scores = table.column("raw_scores").cast(pa.list_(pa.float32()))
    pq.write_table(
        table.set_column(raw, "raw_scores", float32_scores), folder / PER_QUERY_FILE, write_page_checksum=True
    )
    costs = {**record.cost, COST_CHECKSUM: compute_digest(record.cost)}
    for name, facts in (("sample.json", run.sample), (RECORD_FILE, {**asdict(record), "cost": costs})):
        text = json.dumps(facts, indent=1, ensure_ascii=False)  # half a surrogate pair is written as JSON's escape
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    flush_to_disk(folder)


def format_trec_run(rankings: Mapping[str, Sequence[str]], tag: str) -> bytes:
    """Format a TREC run; the score falls by one per rank, so an evaluator finds no ties."""
    lines = []
    for query, documents in rankings.items():
        for rank, document in enumerate(documents, start=1):
            score = len(documents) - rank + 1
            lines.append(f"{encode_id(query)} Q0 {encode_id(document)} {rank} {score} {encode_id(tag)}\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


def encode_id(text: str) -> str:
    """An id as a run file has it, one word: white space and control characters are percent-encoded.

    A percent sign that looks like the start of such a code is encoded too; `decode_id` restores every id.
    """
    escaped = ENCODED_CHARACTER.sub("%25", text)
    return "".join(quote(c, errors="surrogatepass") if c.isspace() or not c.isprintable() else c for c in escaped)


def decode_id(text: str) -> str:
    """Decode an id of a retbench run file."""
    return unquote(text)
