"""Find the texts and the ranking of a finished run; a record itself contains no texts.

The collection is found in the cache by name and fingerprint, because a record does not contain the path of a folder.
"""

import gzip
import itertools
import logging
import math
import zlib
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retbench.cards import catalog
from retbench.corpora.cache_status import get_cache_status
from retbench.corpora.collection import Collection, load_collection
from retbench.corpora.collection_cache import MANIFEST, find_missing_ids
from retbench.corpora.open_collection import open_collection
from retbench.corpora.text_lines import MAX_EXPANSION, MIN_UNPACKED
from retbench.errors import DataError, MissingError, RetbenchError, UsageError
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, ResultsFolder, decode_id, read_record
from retbench.system.file_kinds import require_regular_file
from retbench.system.user_config import encode_path_part, get_cache_folder, get_results_folder

log = logging.getLogger(__name__)

MAX_LISTED_RUNS = 6
TREC_COLUMNS = "six columns: query Q0 document rank score tag"
MAX_RANK_DIGITS = 18  # Python refuses to read thousands


def find_run(argument: str, results: Path | None = None, task: str | None = None) -> Path:
    """Find a run's folder by its path, by the first characters of its settings-id, or by its model (and task)."""
    path = Path(argument)
    if path.name == RECORD_FILE and path.is_file():
        return path.parent
    if (path / RECORD_FILE).is_file():
        return path
    results = results or get_results_folder()
    folders = [file.parent for file in ResultsFolder(results).list_record_files()] if argument else []
    task = task and get_task_name(task)
    on_task = [folder for folder in folders if task is None or folder.parents[1].name == encode_path_part(task)]
    model = encode_path_part(_get_model_name(argument))
    found = [folder for folder in folders if folder.name.startswith(argument)]
    if len(found) > 1:  # tasks with the same content give the same settings-id
        found = [folder for folder in found if folder in on_task] or found
    found = found or [folder for folder in on_task if folder.parent.name == model]
    if len(found) == 1:
        return found[0]
    place = f"{results}" + (f" on {task}" if task else "")
    if found:
        step = "name one settings-id" if task else "name one settings-id, or give --task"
        raise UsageError(f"{len(found)} runs in {place} fit {argument!r}: {_list_runs(found)}", step)
    raise UsageError(
        f"there is no run {argument!r} in {place}",
        f"name a run's folder, its settings-id or its model: retbench list results --results {results}",
    )


def _get_model_name(argument: str) -> str:
    """Return the name of the card that an argument names by an alias, else the argument."""
    return catalog.find_model_card(argument).name if argument in catalog.load_model_cards() else argument.lower()


def get_task_name(argument: str) -> str:
    """Return the name of the task that an alias or a folder names, else the argument, which may have no card."""
    is_folder = Path(argument).name != argument and Path(argument).expanduser().is_dir()
    return catalog.find_task_card(argument).name if is_folder or argument in catalog.load_task_cards() else argument


def _list_runs(folders: Sequence[Path]) -> str:
    """List runs with what tells them apart, so that one can be named."""
    records = [read_record(folder / RECORD_FILE) for folder in folders[:MAX_LISTED_RUNS]]
    listed = [f"{record.settings_id} ({_describe_run(record)})" for record in records]
    return ", ".join([*listed, f"and {len(folders) - len(listed)} more"] if len(folders) > len(listed) else listed)


def _describe_run(record: Record) -> str:
    rerankers = [one["rerank"] for one in record.settings["rerankers"]]
    split, sample = record.settings["split"], record.settings["sample"]
    part = (f", split {split}" if split != "test" else "") + (f", sample of {sample}" if sample else "")
    return f"{' + '.join((record.method, *rerankers))} on {record.task}{part}"


def open_recorded_collection(record: Record) -> Collection:
    """Open the collection of a record, at its split and sample; a fetched one is compiled first."""
    if collection := find_recorded_collection(record, compile_fetched=True):
        return collection
    raise MissingError(
        f"the texts of {record.task} (fingerprint {record.collection['fingerprint'][:12]}) are not in the cache",
        f"run any model on the same collection once, for example bm25 --task {record.task}, or set RETBENCH_CACHE",
    )


def find_recorded_collection(record: Record, compile_fetched: bool = False) -> Collection | None:
    """Find the collection of a record in the cache; None if it is not there, or was not compiled yet."""
    for collection in _list_cached_collections(record, compile_fetched):
        sample = record.settings["sample"]
        sampled = collection.sample(sample) if sample else collection
        if sampled.fingerprint == record.collection["fingerprint"]:
            return sampled.drop_images() if record.settings.get("images") == "ignore" else sampled
    return None


def _list_cached_collections(record: Record, compile_fetched: bool) -> list[Collection]:
    drop = record.settings.get("excluded") == "drop"
    folders = sorted((get_cache_folder() / "collections").glob(f"{encode_path_part(record.task)}-*/{MANIFEST}"))
    collections = []
    for manifest in folders:
        try:
            collections.append(load_collection(manifest.parent, record.settings["split"], drop))
        except (RetbenchError, KeyError, TypeError):  # another collection of that name, or an older format
            continue
    if record.task in catalog.load_task_cards():
        card = replace(catalog.find_task_card(record.task), split=record.settings["split"])
        with suppress(RetbenchError):  # not fetched: the caller finds nothing
            if compile_fetched or get_cache_status(card).state == "cached":
                collections.append(open_collection(card, with_images=True))
    return collections


class TrecEntry(NamedTuple):
    """One line of a TREC run."""

    single: float  # the score as trec_eval compares it, in float32
    document: str
    score: float
    rank: int | None  # None if it is not a number


@dataclass(frozen=True)
class TrecRun:
    """A TREC run in the order of trec_eval: by score, equal scores by document id, the last id first."""

    scored: dict[str, list[tuple[str, float]]]
    contradictory_queries: int  # queries whose rank column orders documents otherwise

    @property
    def rankings(self) -> dict[str, list[str]]:
        """Documents by query, best first."""
        return {query: [document for document, _ in entries] for query, entries in self.scored.items()}

    def describe_contradiction(self, file: Path) -> str | None:
        """Say that ranks and scores contradict each other; None if they agree."""
        if not self.contradictory_queries:
            return None
        return (
            f"{file.name}: the rank column contradicts the scores in {self.contradictory_queries:,} of "
            f"{len(self.scored):,} queries; as in trec_eval, the scores count"
        )


def describe_missing_queries(file: Path, ranked: Set[str], judged: Set[str]) -> str | None:
    """Say that judged queries have no ranking; None if all have one. They score 0, as in trec_eval with -c."""
    missing = len(judged - ranked)
    return f"{file.name} has no ranking for {missing:,} of {len(judged):,} queries; they score 0" if missing else None


def load_trec_run(file: Path) -> TrecRun:
    """Read a TREC run of any system, plain or gzipped; a run without a line is an error."""
    run = _parse_trec_run(file)
    if not run.scored:
        raise DataError(f"{file} is an empty run", f"name a run with lines of {TREC_COLUMNS}")
    return run


def read_scored_trec_run(file: Path) -> dict[str, list[tuple[str, float]]]:
    """Read the documents and scores of a TREC run by query, best first; log where its ranks contradict its scores."""
    run = load_trec_run(file)
    if contradiction := run.describe_contradiction(file):
        log.warning(contradiction)
    return run.scored


def read_trec_run(file: Path) -> dict[str, list[str]]:
    """Read the ranking of a retbench run, whose scores fall with the rank."""
    return _parse_trec_run(file).rankings


def _parse_trec_run(file: Path) -> TrecRun:
    try:
        lines = _read_unpacked(file).decode("utf-8-sig").splitlines()  # a byte order mark is no part of the first id
    except (OSError, ValueError, EOFError, zlib.error) as problem:
        raise DataError(f"{file} is not a TREC run: {problem}", f"give lines of {TREC_COLUMNS}") from problem
    entries: dict[str, list[TrecEntry]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            query, entry = _parse_trec_line(line, f"{file}, line {number}")
            entries.setdefault(query, []).append(entry)
    for found in entries.values():
        found.sort(reverse=True, key=lambda entry: (entry.single, entry.document))
    scored = {query: [(entry.document, entry.score) for entry in found] for query, found in entries.items()}
    return TrecRun(scored, sum(map(_has_contradiction, entries.values())))


def _read_unpacked(file: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped; a file that would fill the memory is refused."""
    require_regular_file(file)
    with file.open("rb") as source:
        if source.read(2) != b"\x1f\x8b":
            return file.read_bytes()
    limit = MIN_UNPACKED + MAX_EXPANSION * file.stat().st_size
    with gzip.open(file) as unpacked:
        content = unpacked.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{file} unpacks to over {MAX_EXPANSION} times its size", "do not trust it")
    return content


def _parse_trec_line(line: str, place: str) -> tuple[str, TrecEntry]:
    """Return the query and the entry of a line."""
    row = line.split()
    try:
        query, document, score = row[0], row[2], float(row[4])
    except (ValueError, IndexError) as problem:
        raise DataError(f"{place} is not a TREC run line: {line[:80]!r}", f"give {TREC_COLUMNS}") from problem
    if math.isnan(score):
        raise DataError(f"{place} has a score that is not a number", "correct the run, or leave the document out")
    with np.errstate(over="ignore"):  # a score beyond float32 is infinite in trec_eval too
        single = float(np.float32(score))
    has_rank = row[3].isdecimal() and len(row[3]) <= MAX_RANK_DIGITS
    return query, TrecEntry(single, document, score, int(row[3]) if has_rank else None)


def _has_contradiction(entries: Sequence[TrecEntry]) -> bool:
    """Return whether a document has a worse rank than one with a lower score."""
    best = math.inf  # the best rank among lower scores
    for _, group in itertools.groupby(reversed(entries), key=lambda entry: entry.single):
        ranks = [entry.rank for entry in group if entry.rank is not None]
        if ranks and max(ranks) > best:
            return True
        best = min([best, *ranks])
    return False


def read_rankings(folder: Path, collection: Collection) -> dict[str, list[str]]:
    """Read the rankings of a retbench run; raise for ids that the collection does not have."""
    file = folder / "run.trec.gz"
    rankings = {decode_id(query): list(map(decode_id, ids)) for query, ids in read_trec_run(file).items()}
    ranked_ids = {document for ids in rankings.values() for document in ids}
    unknown_ids = {*rankings} - {*collection.judgments} or find_missing_ids(ranked_ids, collection.corpus)
    if unknown_ids:
        cause = f"{file} ranks {min(unknown_ids)!r}, which the collection does not have"
        raise DataError(cause, "remove the run's folder and run the cell again")
    return rankings
