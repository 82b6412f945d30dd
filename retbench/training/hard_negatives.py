"""Negatives: what a retriever ranks high for a query and nobody calls relevant.

A mined file is jsonl: the first line says how and from what it was mined, every other line is one query of the set, in
order, with the rows of its negatives. It is used again only with the same queries and passages.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.model import Lexical
from retbench.cards.recipe import Mining
from retbench.errors import DataError, MissingError
from retbench.retrievers.bm25 import BM25
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import write_whole
from retbench.training.training_set import Query, TrainingSet

DEEP = 1000  # how far a positive is looked for when a margin needs its score; one beyond counts as the thousandth

Ranker = Callable[[list[str], int], Ranking]


def by_words(training: TrainingSet) -> Ranker:
    """BM25 over the set's passages."""
    index = BM25(Lexical(), training.passages)
    return index.search


def mined(training: TrainingSet, mining: Mining, ranker: Ranker, miner: str) -> TrainingSet:
    """The set with negatives from a ranking in place of its own."""
    most = max(len(query.positives) for query in training.queries)
    depth = DEEP if mining.margin is not None else mining.last + most
    found = ranker([query.text for query in training.queries], min(depth, len(training.passages)))
    rows = [
        _negatives(query, *pair, mining)
        for query, pair in zip(training.queries, zip(found.rows, found.scores, strict=True), strict=True)
    ]
    kept = [replace(query, negatives=own, scores=None) for query, own in zip(training.queries, rows, strict=True)]
    return training.kept(kept, negatives={"miner": miner, **_settings(mining), "mined": sum(map(len, rows))})


def _settings(mining: Mining) -> dict[str, Any]:
    return {key: value for key, value in asdict(mining).items() if key != "file" and value is not None}


def _negatives(query: Query, rows: np.ndarray, scores: np.ndarray, mining: Mining) -> tuple[int, ...]:
    relevant = np.isin(rows, query.positives)
    rank = np.cumsum(~relevant)  # places among what is not relevant, from 1
    wanted = ~relevant & (rank >= mining.first) & (rank <= mining.last)
    if mining.margin is not None and len(scores):
        best = scores[relevant].max() if relevant.any() else scores[-1]
        wanted &= scores <= mining.margin * best
    return tuple(int(row) for row in rows[wanted][: mining.keep])


def write(training: TrainingSet, file: Path) -> None:
    """Keep mined negatives for another run."""
    head = {"set": training.name, "content": _content(training), "negatives": training.facts["negatives"]}
    lines = [head, *({"query": q.text, "negatives": q.negatives} for q in training.queries)]
    write_whole(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def read(training: TrainingSet, file: Path) -> TrainingSet:
    """The set with the negatives of a mined file."""
    if not file.is_file():
        raise MissingError(f"there is no mined file at {file}", "mine anew: leave mining.file out")
    try:
        head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        content, negatives = head["content"], [tuple(map(int, line["negatives"])) for line in lines]
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{file} is no mined file: {problem}", "mine anew: leave mining.file out") from problem
    if content != _content(training) or len(negatives) != len(training.queries):
        raise DataError(f"{file} was mined for other queries or passages", "mine anew: leave mining.file out")
    queries = [replace(q, negatives=own, scores=None) for q, own in zip(training.queries, negatives, strict=True)]
    return training.kept(queries, negatives=head["negatives"])


def _content(training: TrainingSet) -> str:
    """A digest of what row numbers refer to."""
    queries = hashlib.sha256(json.dumps([q.text for q in training.queries]).encode()).hexdigest()
    return hashlib.sha256(f"{training.fingerprint} {queries}".encode()).hexdigest()
