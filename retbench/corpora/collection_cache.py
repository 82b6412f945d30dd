"""A collection checked once and stored in the cache: Arrow files and a manifest that is written last.

A manifest means complete: a folder without one is the rest of an interrupted read and is never opened. It holds the
checksum of every file, and one of itself: what changed on the disk since, be it one letter, is seen before a row is
read. Rows stream through; what is held of a corpus meanwhile is eight bytes a document.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.cards.checksums import cached_sha256, compute_sha256
from retbench.cards.text_parsers import parse_json
from retbench.corpora.rows import Exclusion, Judgment, RawCollection, TextRow
from retbench.corpora.texts import SCHEMA, Texts
from retbench.errors import DataError, ResourceError

MANIFEST = "manifest.json"
ROWS_PER_BATCH = 4096
JUDGMENTS = pa.schema([("query", pa.string()), ("document", pa.string()), ("grade", pa.int32())])
EXCLUSIONS = pa.schema([("query", pa.string()), ("document", pa.string())])


def compile_collection(raw: RawCollection, folder: Path) -> None:
    """Check everything a source hands over and store it under `folder`, all or nothing."""
    partial = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        manifest = _write_collection(raw, partial)
        manifest["files"] = {file.name: compute_sha256(file) for file in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({**manifest, "sha256": _hash_manifest(manifest)}, indent=1))
        _move_into_place(partial, folder)
    except OSError as problem:
        raise ResourceError(
            f"{folder} could not be written: {problem.strerror or problem}", "make room or set RETBENCH_CACHE to a disk"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a stored collection says about itself; a byte that changed since it was stored is an error."""
    manifest = _load_manifest(folder)
    for name, wanted in manifest["files"].items():
        found = cached_sha256(folder / name) if (folder / name).is_file() else "nothing"
        if found != wanted:
            raise _build_damage_error(folder / name, wanted, found)
    return manifest


def peek_manifest(folder: Path) -> dict[str, Any]:
    """Counts and splits of a stored collection whose bytes nobody looked at; empty where none can be opened."""
    try:
        return _load_manifest(folder)
    except DataError:
        return {}


def discard_collection(folder: Path) -> None:
    """Remove a stored collection; who has it open keeps what is mapped. The manifest goes first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _load_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
        wanted = manifest.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as problem:
        raise DataError(
            f"{file} is not a manifest", f"delete {folder}; the next run or fetch reads it anew"
        ) from problem
    if _hash_manifest(manifest) != wanted:
        raise _build_damage_error(file, wanted, _hash_manifest(manifest))
    return dict(manifest)


def _hash_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _build_damage_error(file: Path, wanted: str, found: str) -> DataError:
    cause = f"{file} was {wanted} when it was stored and is {found} now"
    return DataError(cause, f"delete {file.parent}; the next run or fetch reads it anew, if its source can be had")


def _move_into_place(partial: Path, folder: Path) -> None:
    """Put a finished collection in its place, unless another process was faster."""
    if not (folder / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise


def _write_collection(raw: RawCollection, folder: Path) -> dict[str, Any]:
    corpus = write_texts(raw.documents, folder / "corpus.arrow", "document")
    queries = write_texts(raw.queries, folder / "queries.arrow", "published query" if raw.published else "query")
    for texts, what in ((corpus, "corpus"), (queries, "list of queries")):
        if len(texts) == 0:
            raise DataError(f"the {what} is empty", "check the source: it should hold at least one row")
    splits: dict[str, object] = {}
    for split, judgments in raw.splits.items():
        listed, lost = _filter_judgments(list(judgments), corpus, queries, raw.published)
        splits[split] = {**_write_judgments(listed, folder / f"judgments-{len(splits)}.arrow"), "unknown": lost}
    return {
        "corpus": {"rows": len(corpus), "fingerprint": corpus.fingerprint},
        "queries": {"rows": len(queries), "fingerprint": queries.fingerprint},
        "splits": splits,
        "excluded": _write_excluded(raw.excluded, folder / "excluded.arrow"),
    }


def _split_into_chunks(items: Iterable[TextRow], size: int) -> Iterator[list[TextRow]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def write_texts(rows: Iterable[TextRow], file: Path, what: str) -> Texts:
    """Store checked rows as they stream by; two rows with one id are an error."""
    digest, marks = hashlib.sha256(), array("q")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
        for chunk in _split_into_chunks(rows, ROWS_PER_BATCH):
            for row in chunk:
                _check_text(row, what)
                digest.update(json.dumps(row[:3], ensure_ascii=False).encode())
                marks.frombytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest())
            out.write_batch(
                pa.record_batch([list(column) for column in zip(*(r[:3] for r in chunk), strict=True)], SCHEMA)
            )
    texts = Texts.open(file, digest.hexdigest())
    _check_unique(texts, np.frombuffer(marks, dtype=np.int64), what)
    return texts


def _check_text(row: TextRow, what: str) -> None:
    """An empty query has no answer; an empty document is kept, and counted in the record."""
    if what == "query" and not row.text.strip():
        raise DataError(f"{row.where or row.id}: query {row.id!r} is empty", "remove it, and its judgments")
    try:
        (row.id + row.title + row.text).encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{row.where or row.id}: half a character in {what} {row.id!r}", "mend its \\u escapes"
        ) from problem


def _check_unique(texts: Texts, marks: np.ndarray, what: str) -> None:
    """64-bit marks find the rows that may repeat an id; only their ids are looked at."""
    order = np.argsort(marks, kind="stable")
    same = marks[order[1:]] == marks[order[:-1]]
    suspects = np.unique(np.concatenate((order[1:][same], order[:-1][same])))
    repeated = [i for i, count in Counter(texts.take(suspects).ids().to_pylist()).items() if count > 1]
    if len(suspects) and repeated:
        raise DataError(
            f"{what} id {repeated[0]!r} stands twice ({len(repeated)} such ids)", "give every row its own _id"
        )


def _filter_judgments(
    listed: list[Judgment], corpus: Texts, queries: Texts, published: bool
) -> tuple[list[Judgment], dict[str, int]]:
    """The judgments that can be used, and how many ids they name that no row has."""
    strange_queries = find_missing_ids({j.query for j in listed}, queries)
    strange_documents = find_missing_ids({j.document for j in listed}, corpus)
    for judgment in listed if not published and (strange_queries or strange_documents) else ():
        for what, name, strange in (
            ("query", judgment.query, strange_queries),
            ("document", judgment.document, strange_documents),
        ):
            if name in strange:
                place = judgment.where or "the judgments"
                raise DataError(f"{place}: there is no {what} {name!r}", "mend the judgments or add the missing row")
    lost = {"queries": len(strange_queries), "documents": len(strange_documents)}
    if published:
        listed = list({(j.query, j.document): j for j in listed}.values())
    return [j for j in listed if j.query not in strange_queries], lost


def find_missing_ids(named: set[str], texts: Texts) -> set[str]:
    """Which ids no row has. The few named ids are looked for among the many rows, chunk by chunk."""
    wanted = pa.array(named, pa.string())
    for chunk in texts.ids().chunks:
        named = named - set(chunk.filter(pc.is_in(chunk, value_set=wanted)).to_pylist())
    return named


def _write_judgments(listed: list[Judgment], file: Path) -> dict[str, Any]:
    pairs = Counter((j.query, j.document) for j in listed)
    twice = next((pair for pair, count in pairs.items() if count > 1), None)
    if twice:
        raise DataError(f"query {twice[0]!r} judges document {twice[1]!r} twice", "keep one of the two judgments")
    digest = hashlib.sha256(json.dumps(sorted(j[:3] for j in listed), ensure_ascii=False).encode()).hexdigest()
    _write_table([[j.query for j in listed], [j.document for j in listed], [j.grade for j in listed]], JUDGMENTS, file)
    return {"file": file.name, "rows": len(listed), "queries": len({j.query for j in listed}), "fingerprint": digest}


def _write_excluded(excluded: Iterable[Exclusion], file: Path) -> dict[str, object] | None:
    listed = sorted(set(excluded))
    if not listed:
        return None
    _write_table([[e.query for e in listed], [e.document for e in listed]], EXCLUSIONS, file)
    return {"file": file.name, "rows": len(listed)}


def _write_table(columns: Sequence[object], schema: pa.Schema, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        out.write_batch(pa.record_batch(list(columns), schema))
