"""Find the texts and the ranking of a finished run; a record itself contains no texts.

The collection is found in the cache by name and fingerprint, because a record does not contain the path of a folder.
"""

import gzip
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.user_config import encode_path_part, get_cache_folder
from retbench.corpora.collection import Collection, load_collection
from retbench.corpora.collection_cache import MANIFEST, find_missing_ids
from retbench.corpora.open_collection import open_collection
from retbench.errors import DataError, MissingError, RetbenchError, UsageError
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, ResultsFolder, decode_id


def find_run(argument: str, results: Path) -> Path:
    """Find a run's folder by its path or by the first characters of its settings-id."""
    path = Path(argument)
    if path.name == RECORD_FILE and path.is_file():
        return path.parent
    if (path / RECORD_FILE).is_file():
        return path
    files = ResultsFolder(results).list_record_files() if argument else []
    folders = [file.parent for file in files if file.parent.name.startswith(argument)]
    if len(folders) == 1:
        return folders[0]
    problem = (
        f"{len(folders)} runs in {results} begin with {argument!r}" if folders else f"there is no run {argument!r}"
    )
    raise UsageError(problem, f"name a run's folder, or its settings-id: retbench list results --results {results}")


def open_recorded_collection(record: Record) -> Collection:
    """Open the collection of a record, at its split and sample."""
    for collection in _list_cached_collections(record):
        sample = record.settings["sample"]
        sampled = collection.sample(sample) if sample else collection
        if sampled.fingerprint == record.collection["fingerprint"]:
            return sampled
    raise MissingError(
        f"the texts of {record.task} (fingerprint {record.collection['fingerprint'][:12]}) are not in the cache",
        f"run any model on the same collection once, for example bm25 --task {record.task}, or set RETBENCH_CACHE",
    )


def _list_cached_collections(record: Record) -> list[Collection]:
    drop = record.settings.get("excluded") == "drop"
    folders = sorted((get_cache_folder() / "collections").glob(f"{encode_path_part(record.task)}-*/{MANIFEST}"))
    collections = []
    for manifest in folders:
        try:
            collections.append(load_collection(manifest.parent, record.settings["split"], drop))
        except (RetbenchError, KeyError, TypeError):  # another collection of that name, or an older format
            continue
    if record.task in catalog.load_task_cards():
        with suppress(RetbenchError):  # not fetched; the caller raises
            collections.append(
                open_collection(replace(catalog.find_task_card(record.task), split=record.settings["split"]))
            )
    return collections


def read_trec_run(file: Path) -> dict[str, list[str]]:
    """Read a TREC run, plain or gzipped: documents by query, sorted by the rank column, then by id."""
    return {
        query: [document for document, _ in scored_documents]
        for query, scored_documents in read_scored_trec_run(file).items()
    }


def read_scored_trec_run(file: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a TREC run with its scores."""
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode().splitlines()
        rows = [line.split() for line in lines if line.strip()]
        entries = sorted((row[0], int(row[3]), row[2], float(row[4])) for row in rows)
    except (OSError, ValueError, IndexError, EOFError, zlib.error) as problem:
        raise DataError(
            f"{file} is not a TREC run: {problem}", "six columns: query Q0 document rank score tag"
        ) from problem
    ranking: dict[str, list[tuple[str, float]]] = {}
    for query, _, document, score in entries:
        ranking.setdefault(query, []).append((document, score))
    return ranking


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
