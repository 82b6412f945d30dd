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

from retbench.cards.model import LexicalSettings
from retbench.cards.recipe import MiningSettings
from retbench.errors import DataError, MissingError
from retbench.retrievers.bm25 import BM25Index
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import write_file_atomically
from retbench.training.training_set import TrainingQuery, TrainingSet

SCORE_DEPTH = (
    1000  # how far a positive is looked for when a margin needs its score; one beyond counts as the thousandth
)

Ranker = Callable[[list[str], int], Ranking]


def build_bm25_ranker(training: TrainingSet) -> Ranker:
    """BM25 over the set's passages."""
    index = BM25Index(LexicalSettings(), training.passages)
    return index.search


def mine_hard_negatives(training: TrainingSet, mining: MiningSettings, ranker: Ranker, miner: str) -> TrainingSet:
    """The set with negatives from a ranking in place of its own."""
    most = max(len(query.positives) for query in training.queries)
    depth = SCORE_DEPTH if mining.max_score_ratio is not None else mining.rank_to + most
    found = ranker([query.text for query in training.queries], min(depth, len(training.passages)))
    rows = [
        _select_negatives(query, *pair, mining)
        for query, pair in zip(training.queries, zip(found.rows, found.scores, strict=True), strict=True)
    ]
    kept = [replace(query, negatives=own, scores=None) for query, own in zip(training.queries, rows, strict=True)]
    return training.with_queries(
        kept, negatives={"miner": miner, **_describe_settings(mining), "mined": sum(map(len, rows))}
    )


def _describe_settings(mining: MiningSettings) -> dict[str, Any]:
    return {key: value for key, value in asdict(mining).items() if key != "file" and value is not None}


def _select_negatives(
    query: TrainingQuery, rows: np.ndarray, scores: np.ndarray, mining: MiningSettings
) -> tuple[int, ...]:
    relevant = np.isin(rows, query.positives)
    rank = np.cumsum(~relevant)  # places among what is not relevant, from 1
    wanted = ~relevant & (rank >= mining.rank_from) & (rank <= mining.rank_to)
    if mining.max_score_ratio is not None and len(scores):
        best = scores[relevant].max() if relevant.any() else scores[-1]
        wanted &= scores <= mining.max_score_ratio * best
    return tuple(int(row) for row in rows[wanted][: mining.negatives_per_query])


def write_hard_negatives(training: TrainingSet, file: Path) -> None:
    """Keep mined negatives for another run."""
    head = {"set": training.name, "content": _fingerprint(training), "negatives": training.facts["negatives"]}
    lines = [head, *({"query": q.text, "negatives": q.negatives} for q in training.queries)]
    write_file_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def read_hard_negatives(training: TrainingSet, file: Path) -> TrainingSet:
    """The set with the negatives of a mined file."""
    if not file.is_file():
        raise MissingError(f"there is no mined file at {file}", "mine anew: leave mining.file out")
    try:
        head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        content, negatives = head["content"], [tuple(map(int, line["negatives"])) for line in lines]
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{file} is no mined file: {problem}", "mine anew: leave mining.file out") from problem
    if content != _fingerprint(training) or len(negatives) != len(training.queries):
        raise DataError(f"{file} was mined for other queries or passages", "mine anew: leave mining.file out")
    queries = [replace(q, negatives=own, scores=None) for q, own in zip(training.queries, negatives, strict=True)]
    return training.with_queries(queries, negatives=head["negatives"])


def _fingerprint(training: TrainingSet) -> str:
    """A digest of what row numbers refer to."""
    queries = hashlib.sha256(json.dumps([q.text for q in training.queries]).encode()).hexdigest()
    return hashlib.sha256(f"{training.fingerprint} {queries}".encode()).hexdigest()
