"""MS MARCO's own training triples: query id, id of a positive, id of a negative (`qidpidtriples.train.full.2.tsv.gz`).

The positives are those of the judgments; of the triples a query takes its first negatives, in the order of the file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError
from retbench.training.training_set import TrainingSet


def find_triples(folder: Path, split: str) -> Path | None:
    """The triples of a split in a folder of MS MARCO's layout; of several the first by name."""
    files = sorted(folder.glob("qidpidtriples.*")) if folder.is_dir() else []
    return next((file for file in files if split in file.name.split(".")), None)


def add_triple_negatives(training: TrainingSet, file: Path, keep: int) -> TrainingSet:
    """The set with up to `keep` negatives a query, from the triples."""
    rows = {name: row for row, name in enumerate(training.passage_ids or ())}
    places = {query.id: place for place, query in enumerate(training.queries)}
    taken: list[dict[int, None]] = [{} for _ in training.queries]
    unknown = 0
    for line, where in read_lines(file):
        query, positive, negative = _parse_triple(line, where)
        place = places.get(query)
        if place is None:
            unknown += 1
            continue
        good, bad = _find_passage_row(rows, positive, where), _find_passage_row(rows, negative, where)
        if bad != good and bad not in training.queries[place].positives and len(taken[place]) < keep:
            taken[place][bad] = None
    kept = [replace(query, negatives=tuple(own)) for query, own in zip(training.queries, taken, strict=True)]
    digest = hashlib.sha256(repr([query.negatives for query in kept]).encode()).hexdigest()
    facts = {"file": file.name, "keep": keep, "taken": sum(map(len, taken)), "content": digest}
    return training.with_queries(kept, negatives={**facts, "triples_of_other_queries": unknown})


def _parse_triple(line: str, where: str) -> tuple[str, str, str]:
    parts = line.split()
    if len(parts) != 3:
        raise DataError(f"{where}: {len(parts)} columns", "write query, positive and negative, tab between them")
    return parts[0], parts[1], parts[2]


def _find_passage_row(rows: Mapping[str, int], name: str, where: str) -> int:
    if name not in rows:
        raise DataError(f"{where}: passage {name!r} is not in the corpus", "take corpus and triples of one release")
    return rows[name]
