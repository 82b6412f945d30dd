"""The BEIR folder layout, plain or gzipped: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

An integer id is read as its decimal text; any other id that is not a string is an error. An id may hold any character
and never becomes a path. A byte order mark and CRLF line ends are accepted.
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

LAYOUT = "a collection is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv (each may end in .gz)"


def read_collection(folder: Path) -> RawCollection:
    """Read the collection in a folder, streaming."""
    splits = {_parse_split_name(file): read_judgments(file) for file in _list_qrels(folder)}
    return RawCollection(
        _read_rows(_find_file(folder, "corpus.jsonl")), _read_rows(_find_file(folder, "queries.jsonl")), dict(splits)
    )


def list_files(folder: Path) -> list[Path]:
    """List the files that are read."""
    return [_find_file(folder, "corpus.jsonl"), _find_file(folder, "queries.jsonl"), *_list_qrels(folder)]


def _find_file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise MissingError(f"{folder} has no {name}", LAYOUT)


def _list_qrels(folder: Path) -> list[Path]:
    files = [f for f in sorted((folder / "qrels").glob("*")) if re.search(r"\.tsv(\.gz)?$", f.name)]
    if not files:
        raise MissingError(f"{folder} has no qrels/*.tsv", LAYOUT)
    return files


def _parse_split_name(file: Path) -> str:
    return re.sub(r"\.tsv(\.gz)?$", "", file.name)


def _read_rows(file: Path) -> Iterator[TextRow]:
    for line, where in read_lines(file):
        try:
            item = parse_json(line)
        except ValueError as problem:  # also a number with more digits than Python parses
            raise DataError(f"{where}: not valid JSON: {problem}", "correct or remove that line") from problem
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {line[:40]!r}", 'write {{"_id": ..., "text": ...}}')
        yield TextRow(_read_id(item, where), _read_text(item, "title", where), _read_text(item, "text", where), where)


def _read_id(item: dict[str, Any], where: str) -> str:
    value = item.get("_id", item.get("id"))
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: _id is {value!r}", "give every row a non-empty string as _id")
    return value


def _read_text(item: dict[str, Any], field: str, where: str) -> str:
    value = item.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {field} is {type(value).__name__}, not text", "write it as a JSON string")
    return value or ""
