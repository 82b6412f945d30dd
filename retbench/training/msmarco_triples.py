"""MS MARCO's own training triples: query id, id of a positive, id of a negative (`qidpidtriples.train.full.2.tsv.gz`).

Positives come from the judgments. The triples give the negatives: the first ones of each query, in the file's order.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError
from retbench.training.training_set import TrainingSet


def find_triples(folder: Path, split: str) -> Path | None:
    """The triples file of a split in a folder of MS MARCO's layout; if there are several, the first by name."""
    files = sorted(folder.glob("qidpidtriples.*")) if folder.is_dir() else []
    return next((file for file in files if split in file.name.split(".")), None)


def add_triple_negatives(training_set: TrainingSet, file: Path, negatives_per_query: int) -> TrainingSet:
    """The set with at most `negatives_per_query` negatives from the triples."""
    passage_rows = {identifier: row for row, identifier in enumerate(training_set.passage_ids or ())}
    query_rows = {query.id: row for row, query in enumerate(training_set.queries)}
    negatives: list[dict[int, None]] = [{} for _ in training_set.queries]  # by query, in the file's order
    other_queries = 0
    for line, where in read_lines(file):
        query, positive, negative = _parse_triple(line, where)
        row = query_rows.get(query)
        if row is None:
            other_queries += 1
            continue
        positive_row = _find_passage_row(passage_rows, positive, where)
        negative_row = _find_passage_row(passage_rows, negative, where)
        usable = negative_row != positive_row and negative_row not in training_set.queries[row].positives
        if usable and len(negatives[row]) < negatives_per_query:
            negatives[row][negative_row] = None
    pairs = zip(training_set.queries, negatives, strict=True)
    queries = [replace(query, negatives=tuple(rows)) for query, rows in pairs]
    digest = hashlib.sha256(repr([query.negatives for query in queries]).encode()).hexdigest()
    taken = sum(map(len, negatives))
    facts = {"file": file.name, "keep": negatives_per_query, "taken": taken, "content": digest}
    return training_set.with_queries(queries, negatives={**facts, "triples_of_other_queries": other_queries})


def _parse_triple(line: str, where: str) -> tuple[str, str, str]:
    parts = line.split()
    if len(parts) != 3:
        raise DataError(f"{where}: {len(parts)} columns", "write query, positive and negative, separated by tabs")
    return parts[0], parts[1], parts[2]


def _find_passage_row(rows: Mapping[str, int], name: str, where: str) -> int:
    if name not in rows:
        raise DataError(f"{where}: passage {name!r} is not in the corpus", "take corpus and triples of one release")
    return rows[name]
