"""The BEIR folder layout, plain or gzipped: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

An integer id is read as its decimal text; any other id that is not a string is an error. An id may hold any character
and never becomes a path. A byte order mark and CRLF line ends are accepted. A row without the field `text` is an error:
with other names (`body`, `contents`) only the titles would be indexed. A row may have the field `image` in place of
`text` or beside it: the path of a file in the folder.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retbench.cards.untrusted_fields import is_inside
from retbench.corpora.images import MAX_IMAGE_BYTES
from retbench.corpora.judgments import read_judgments
from retbench.corpora.rows import RawCollection, TextRow
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError, MissingError
from retbench.system.file_kinds import require_regular_file
from retbench.system.text_parsers import parse_json

ROW_FILES = ("corpus.jsonl", "queries.jsonl")
IMAGE_FIELD = "image"
TEXT_FIELDS = ("text", "title", "_id", "id")
USUAL_TEXT_NAMES = ("contents", "content", "body", "passage", "document", "query", "question", "abstract")
USUAL_ID_NAMES = ("docid", "doc_id", "pid", "qid", "query_id", "query-id", "corpus-id", "docno")

LAYOUT = "a collection is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv (each may end in .gz)"


def read_collection(folder: Path) -> RawCollection:
    """Read the collection in a folder, streaming."""
    splits = {parse_split_name(file): read_judgments(file) for file in list_qrels(folder)}
    corpus, queries = (_read_rows(_find_file(folder, name)) for name in ROW_FILES)
    return RawCollection(corpus, queries, dict(splits))


def list_files(folder: Path) -> list[Path]:
    """List the files that are read."""
    files = [_find_file(folder, name) for name in ROW_FILES]
    images = (image for file in files for image in _list_images(file)) if _has_other_files(folder) else ()
    return [*files, *list_qrels(folder), *images]


def _has_other_files(folder: Path) -> bool:
    """Whether a folder holds more than rows and judgments: only then can it hold images, and rows are searched."""
    known = {"qrels", *ROW_FILES, *(f"{name}.gz" for name in ROW_FILES)}
    return any(entry.name not in known for entry in folder.iterdir())


def _list_images(file: Path) -> Iterator[Path]:
    """List the image files that rows name. Only lines with the name of the field are parsed."""
    for line, where in read_lines(file):
        if f'"{IMAGE_FIELD}"' in line and (image := _find_image(_parse_row(line, where), file.parent, where)):
            yield image


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
    folder = file.parent
    for line, where in read_lines(file):
        item = _parse_row(line, where)
        image = _find_image(item, folder, where)
        yield TextRow(
            _read_id(item, where), _read_text(item, "title", where), _read_body(item, where), where,
            image.read_bytes() if image else None,
        )  # fmt: skip


def _parse_row(line: str, where: str) -> dict[str, Any]:
    try:
        item = parse_json(line)
    except ValueError as problem:  # also a number with more digits than Python parses
        raise DataError(f"{where}: not valid JSON: {problem}", "correct or remove that line") from problem
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected an object, found {line[:40]!r}", 'write {"_id": ..., "text": ...}')
    return item


def _find_image(item: dict[str, Any], folder: Path, where: str) -> Path | None:
    """Find the image file of a row; None if it names none. A path that leads out of the folder is refused."""
    name = item.get(IMAGE_FIELD)
    if name is None:
        return None
    if not isinstance(name, str) or not is_inside(name) or not _is_below(folder / name, folder):
        raise DataError(
            f"{where}: image is {name!r}, which is no path of a file inside of {folder.name}",
            "write a path relative to the folder, without .., or rename a field that is no image",
        )
    require_regular_file(folder / name)
    if not (folder / name).is_file():
        raise DataError(f"{where}: there is no image {name} in {folder}", "add the file, or correct the path")
    if (folder / name).stat().st_size > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: {name} has more than {MAX_IMAGE_BYTES:,} bytes", "store the image smaller")
    return folder / name


def _is_below(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, also after following links."""
    return file.resolve().is_relative_to(folder.resolve())


def _read_body(item: dict[str, Any], where: str) -> str:
    """Read `text`. Without it, offer the field that is probably the text: one of a usual name, else the longest."""
    if "text" in item or item.get(IMAGE_FIELD) is not None:
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
