"""The BEIR folder layout, plain or gzipped: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

An integer id is read as its decimal text; any other id that is not a string is an error. An id may hold any character
and never becomes a path. A byte order mark and CRLF line ends are accepted. A row without the field `text` is an error:
with other names (`body`, `contents`) only the titles would be indexed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retbench.cards.text_parsers import parse_json
from retbench.corpora.judgments import read_judgments
from retbench.corpora.rows import RawCollection, TextRow
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError, MissingError

TEXT_FIELDS = ("text", "title", "_id", "id")
USUAL_TEXT_NAMES = ("contents", "content", "body", "passage", "document", "query", "question", "abstract")
USUAL_ID_NAMES = ("docid", "doc_id", "pid", "qid", "query_id", "query-id", "corpus-id", "docno")

LAYOUT = "a collection is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv (each may end in .gz)"


def read_collection(folder: Path) -> RawCollection:
    """Read the collection in a folder, streaming."""
    splits = {parse_split_name(file): read_judgments(file) for file in list_qrels(folder)}
    return RawCollection(
        _read_rows(_find_file(folder, "corpus.jsonl")), _read_rows(_find_file(folder, "queries.jsonl")), dict(splits)
    )


def list_files(folder: Path) -> list[Path]:
    """List the files that are read."""
    return [_find_file(folder, "corpus.jsonl"), _find_file(folder, "queries.jsonl"), *list_qrels(folder)]


def _find_file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise MissingError(f"{folder} has no {name}", LAYOUT)


def list_qrels(folder: Path) -> list[Path]:
    """List the files of judgments."""
    files = [f for f in sorted((folder / "qrels").glob("*")) if re.search(r"\.tsv(\.gz)?$", f.name)]
    if not files:
        raise MissingError(f"{folder} has no qrels/*.tsv", LAYOUT)
    return files


def parse_split_name(file: Path) -> str:
    """Return the split of a file of judgments."""
    return re.sub(r"\.tsv(\.gz)?$", "", file.name)


def _read_rows(file: Path) -> Iterator[TextRow]:
    for line, where in read_lines(file):
        try:
            item = parse_json(line)
        except ValueError as problem:  # also a number with more digits than Python parses
            raise DataError(f"{where}: not valid JSON: {problem}", "correct or remove that line") from problem
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {line[:40]!r}", 'write {"_id": ..., "text": ...}')
        yield TextRow(_read_id(item, where), _read_text(item, "title", where), _read_body(item, where), where)


def _read_body(item: dict[str, Any], where: str) -> str:
    """Read `text`. Without it, offer the field that is probably the text: one of a usual name, else the longest."""
    if "text" in item:
        return _read_text(item, "text", where)
    others = {name: value for name, value in item.items() if name not in TEXT_FIELDS and isinstance(value, str)}
    likely = next(
        (name for name in USUAL_TEXT_NAMES if name in others), max(others, key=lambda n: len(others[n]), default=None)
    )
    step = (
        f"rename the field {likely!r} to 'text'"
        if likely
        else "add the field 'text' to every row, empty if it has none"
    )
    raise DataError(
        f"{where}: there is no field 'text'; the row has {', '.join(item) or 'no fields'}",
        f"{step}, in all of the file",
    )


def _read_id(item: dict[str, Any], where: str) -> str:
    value = item.get("_id", item.get("id"))
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value:
        likely = next((name for name in USUAL_ID_NAMES if name in item), None)
        step = (
            f"rename the field {likely!r} to '_id'"
            if likely and value is None
            else "give every row a non-empty string as _id"
        )
        raise DataError(f"{where}: _id is {value!r}; the row has {', '.join(item)}", step)
    return value


def _read_text(item: dict[str, Any], field: str, where: str) -> str:
    value = item.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {field} is {type(value).__name__}, not text", "write it as a JSON string")
    return value or ""
