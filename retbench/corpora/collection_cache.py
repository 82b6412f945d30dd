"""The collection cache: each collection is checked once and stored as Arrow files and a manifest, written last.

A folder with a manifest is complete; a folder without one is the rest of an interrupted read and is never opened. The
manifest holds a checksum of every file and of itself, so any change on disk is detected before a row is read. Rows and
their images are streamed; only eight bytes per document stay in memory.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.corpora.images import ImageWriter, name_image_file
from retbench.corpora.rows import Exclusion, Judgment, ListedDocument, RawCollection, TextRow
from retbench.corpora.texts import SCHEMA, Texts
from retbench.errors import DataError, build_write_error
from retbench.system.checksums import compute_sha256, compute_sha256_once
from retbench.system.durable_files import move_into_place
from retbench.system.text_parsers import parse_json

T = TypeVar("T")

MANIFEST = "manifest.json"
ROWS_PER_BATCH = 4096
JUDGMENTS = pa.schema([("query", pa.string()), ("document", pa.string()), ("grade", pa.int32())])
EXCLUSIONS = pa.schema([("query", pa.string()), ("document", pa.string())])
CANDIDATES = pa.schema([("query", pa.string()), ("document", pa.string()), ("score", pa.float64())])


def compile_collection(raw: RawCollection, folder: Path) -> None:
    """Check all rows of a source and store them under `folder`, all or nothing."""
    partial = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        manifest = _write_collection(raw, partial)
        manifest["files"] = {file.name: compute_sha256(file) for file in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({**manifest, "sha256": _hash_manifest(manifest)}, indent=1))
        _publish(partial, folder)
    except OSError as problem:
        next_step = "free disk space, or set RETBENCH_CACHE to another disk"
        raise build_write_error(folder, problem, next_step) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a stored collection and verify the checksum of every file, once in each process."""
    manifest = _load_manifest(folder)
    for name, expected in manifest["files"].items():
        actual = compute_sha256_once(folder / name) if (folder / name).is_file() else "missing"
        if actual != expected:
            raise _build_damage_error(folder / name, expected, actual)
    return manifest


def peek_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest without verifying the files; empty if there is no valid manifest."""
    try:
        return _load_manifest(folder)
    except DataError:
        return {}


def discard_collection(folder: Path) -> None:
    """Remove a stored collection, the manifest first; a process that has it open keeps its memory maps."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _load_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
        expected = manifest.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as problem:
        raise DataError(f"{file} is not a manifest", f"delete {folder}; the next run or fetch rebuilds it") from problem
    if _hash_manifest(manifest) != expected:
        raise _build_damage_error(file, expected, _hash_manifest(manifest))
    return dict(manifest)


def _hash_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _build_damage_error(file: Path, expected: str, actual: str) -> DataError:
    cause = f"{file} changed since it was stored: its checksum was {expected} and is now {actual}"
    return DataError(cause, f"delete {file.parent}; the next run or fetch rebuilds it, if its source is available")


def _publish(partial: Path, folder: Path) -> None:
    """Rename a finished collection to its final name, unless another process did so first."""
    if not (folder / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        move_into_place(partial, folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise


def _write_collection(raw: RawCollection, folder: Path) -> dict[str, Any]:
    corpus = write_texts(raw.documents, folder / "corpus.arrow", "document")
    queries = write_texts(raw.queries, folder / "queries.arrow", "published query" if raw.published else "query")
    for texts, part in ((corpus, "corpus"), (queries, "list of queries")):
        if len(texts) == 0:
            raise DataError(f"the {part} is empty", "check the source: it must have at least one row")
    splits: dict[str, object] = {}
    for split, judgments in raw.splits.items():
        listed, unknown = _filter_judgments(list(judgments), corpus, queries, raw.published)
        splits[split] = {**_write_judgments(listed, folder / f"judgments-{len(splits)}.arrow"), "unknown": unknown}
    return {
        "corpus": {"rows": len(corpus), "fingerprint": corpus.fingerprint},
        "queries": {"rows": len(queries), "fingerprint": queries.fingerprint},
        "splits": splits,
        "excluded": _write_excluded(raw.excluded, folder / "excluded.arrow"),
        **_write_candidates(raw.candidates, folder / "candidates.arrow"),
    }


def _split_into_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def write_texts(rows: Iterable[TextRow], file: Path, row_kind: str) -> Texts:
    """Check and store rows as they stream; a repeated id is an error. Images go into a file of their own."""
    digest, id_hashes = hashlib.sha256(), array("q")

    def store_images(out: ImageWriter) -> Iterator[tuple[str, str, str]]:
        for row in rows:
            _check_text(row, row_kind)
            quoted = ", ".join(map(encode_basestring, row[:3]))  # as json.dumps quotes them, but fast
            digest.update(f"[{quoted}]".encode())
            if row.image is not None:
                digest.update(b"image " + hashlib.sha256(row.image).digest())
            out.add(row.image, row.where or row.id)
            id_hashes.frombytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest())
            yield row[:3]

    with (
        ImageWriter(name_image_file(file)) as image_out,
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as out,
    ):
        for chunk in _split_into_chunks(store_images(image_out), ROWS_PER_BATCH):
            out.write_batch(pa.record_batch([list(column) for column in zip(*chunk, strict=True)], SCHEMA))
    texts = Texts.open(file, digest.hexdigest())
    _check_unique(texts, np.frombuffer(id_hashes, dtype=np.int64), row_kind)
    return texts


def _check_text(row: TextRow, row_kind: str) -> None:
    """Check one row: an empty query is an error; an empty document is kept and counted in the record."""
    if row_kind == "query" and not row.text.strip() and row.image is None:
        raise DataError(f"{row.where or row.id}: query {row.id!r} is empty", "remove it, and its judgments")
    try:
        (row.id + row.title + row.text).encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{row.where or row.id}: incomplete surrogate pair in {row_kind} {row.id!r}", "correct its \\u escapes"
        ) from problem


def _check_unique(texts: Texts, id_hashes: np.ndarray, row_kind: str) -> None:
    """Refuse repeated ids; only rows whose 64-bit hash repeats are compared by id."""
    order = np.argsort(id_hashes, kind="stable")
    same = id_hashes[order[1:]] == id_hashes[order[:-1]]
    suspects = np.unique(np.concatenate((order[1:][same], order[:-1][same])))
    repeated = [i for i, count in Counter(texts.take(suspects).read_ids().to_pylist()).items() if count > 1]
    if len(suspects) and repeated:
        raise DataError(
            f"{row_kind} id {repeated[0]!r} is repeated ({len(repeated)} such ids)", "give every row its own _id"
        )


def _filter_judgments(
    listed: list[Judgment], corpus: Texts, queries: Texts, published: bool
) -> tuple[list[Judgment], dict[str, int]]:
    """Return the usable judgments, and the number of ids in them that no row has."""
    unknown_queries = find_missing_ids({j.query for j in listed}, queries)
    unknown_documents = find_missing_ids({j.document for j in listed}, corpus)
    for judgment in listed if not published and (unknown_queries or unknown_documents) else ():
        for row_kind, name, unknown_ids in (
            ("query", judgment.query, unknown_queries),
            ("document", judgment.document, unknown_documents),
        ):
            if name in unknown_ids:
                location = judgment.where or "the judgments"
                raise DataError(
                    f"{location}: there is no {row_kind} {name!r}", "correct the judgments or add the missing row"
                )
    unknown = {"queries": len(unknown_queries), "documents": len(unknown_documents)}
    if published:
        listed = list({(j.query, j.document): j for j in listed}.values())
    return [j for j in listed if j.query not in unknown_queries], unknown


def find_missing_ids(ids: set[str], texts: Texts) -> set[str]:
    """Find the ids that no row has, chunk by chunk."""
    searched = pa.array(ids, pa.string())
    for chunk in texts.read_ids().chunks:
        ids = ids - set(chunk.filter(pc.is_in(chunk, value_set=searched)).to_pylist())
    return ids


def _write_judgments(listed: list[Judgment], file: Path) -> dict[str, Any]:
    pairs = Counter((j.query, j.document) for j in listed)
    repeated = next((pair for pair, count in pairs.items() if count > 1), None)
    if repeated:
        raise DataError(f"query {repeated[0]!r} has two judgments of document {repeated[1]!r}", "keep one of them")
    digest = hashlib.sha256(json.dumps(sorted(j[:3] for j in listed), ensure_ascii=False).encode()).hexdigest()
    _write_table([[j.query for j in listed], [j.document for j in listed], [j.grade for j in listed]], JUDGMENTS, file)
    return {"file": file.name, "rows": len(listed), "queries": len({j.query for j in listed}), "fingerprint": digest}


def _write_excluded(excluded: Iterable[Exclusion], file: Path) -> dict[str, object] | None:
    listed = sorted(set(excluded))
    if not listed:
        return None
    _write_table([[e.query for e in listed], [e.document for e in listed]], EXCLUSIONS, file)
    return {"file": file.name, "rows": len(listed)}


def _write_candidates(candidates: Iterable[ListedDocument], file: Path) -> dict[str, object]:
    """Store the rankings of a first stage; an entry of the manifest only if the source has them."""
    listed = list(candidates)
    if not listed:
        return {}
    _write_table([list(column) for column in zip(*listed, strict=True)], CANDIDATES, file)
    return {"candidates": {"file": file.name, "rows": len(listed)}}


def _write_table(columns: Sequence[object], schema: pa.Schema, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        out.write_batch(pa.record_batch(list(columns), schema))
