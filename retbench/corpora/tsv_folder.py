"""The MS MARCO layout: collection.tsv, queries.<split>.tsv and qrels.<split>.tsv, as MS MARCO and TREC publish them.

    collection.tsv[.gz]         id, passage
    *queries*.tsv[.gz]          id, query (also msmarco-test2019-queries.tsv); several files are concatenated
    *qrels*.tsv|.txt[.gz]       TREC's four columns; `qrels.dev.small.tsv` is the split dev.small, and
                                `2019qrels-pass.txt` the split 2019-pass

The train and dev files hold queries without judgments and queries that other files repeat: a repeated row is read once.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from retbench.corpora.judgments import read_judgments
from retbench.corpora.rows import RawCollection, TextRow
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError, MissingError

FILE_ENDING = re.compile(r"\.(tsv|txt)(\.gz)?$")


def is_tsv_folder(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return any((folder / name).exists() for name in ("collection.tsv", "collection.tsv.gz"))


def list_files(folder: Path) -> list[Path]:
    """List the files that are read."""
    files = [file for file in sorted(folder.iterdir()) if FILE_ENDING.search(file.name)]
    return [file for file in files if file.name.startswith("collection.tsv") or _has_word(file, "queries", "qrels")]


def read_collection(folder: Path) -> RawCollection:
    """Read the collection in a folder, streaming."""
    queries = [file for file in list_files(folder) if _has_word(file, "queries")]
    judgments_by_split = {
        _parse_split_name(file): read_judgments(file) for file in list_files(folder) if _has_word(file, "qrels")
    }
    if not queries or not judgments_by_split:
        missing = "judgments (*qrels*)" if queries else "queries (*queries*.tsv)"
        raise MissingError(f"{folder} has no {missing}", "add queries and qrels to the folder of collection.tsv")
    corpus = next(file for file in list_files(folder) if file.name.startswith("collection.tsv"))
    return RawCollection(read_tsv_rows(corpus), _read_distinct_queries(queries), dict(judgments_by_split))


def _has_word(file: Path, *words: str) -> bool:
    return any(word in file.name for word in words)


def _parse_split_name(file: Path) -> str:
    name = FILE_ENDING.sub("", file.name).replace("qrels", "")
    return re.sub(r"[.-]{2,}", "-", name).strip(".-") or "test"


def read_tsv_rows(file: Path) -> Iterator[TextRow]:
    """Read rows of an id and a text."""
    for line, where in read_lines(file):
        identifier, tab, text = line.partition("\t")
        if not tab or not identifier:
            raise DataError(f"{where}: no tab after the id", "write id and text, separated by a tab")
        yield TextRow(identifier, "", text, where)


def _read_distinct_queries(queries: list[Path]) -> Iterator[TextRow]:
    seen: dict[str, str] = {}
    for row in (row for file in queries for row in read_tsv_rows(file)):
        if row.id not in seen:
            seen[row.id] = row.text
            yield row
        elif seen[row.id] != row.text:
            raise DataError(
                f"{row.where}: query {row.id!r} has a different text in another file", "keep one of the two"
            )
