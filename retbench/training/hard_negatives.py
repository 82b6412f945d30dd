"""Hard negatives: passages that a retriever ranks high for a query but that are not relevant to it.

A mined file is jsonl. Its first line describes how and from what it was mined, and has a checksum of the others; every
other line is one query of the set, in order, with the rows of its negatives. It is used again only with the same
queries and passages.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.mining import MiningSettings
from retbench.cards.model import LexicalSettings
from retbench.errors import DataError, MissingError
from retbench.records.phase_timer import AdvanceProgress
from retbench.retrievers.bm25 import BM25Index
from retbench.retrievers.ranking import Ranking
from retbench.system.durable_files import write_file_atomically
from retbench.system.text_parsers import parse_json
from retbench.training.pair_scoring import PairScorer, to_probabilities
from retbench.training.step_plan import describe_changes
from retbench.training.training_set import TrainingQuery, TrainingSet

SCORE_DEPTH = 1000  # ranks that are searched for a positive's score; one below counts as the score at this rank
CHECKSUM = "sha256"
MINE_AGAIN = "delete it, or leave mining.file out, to mine again"

Ranker = Callable[[list[str], int], Ranking]


def build_bm25_ranker(training_set: TrainingSet) -> Ranker:
    """BM25 over the set's passages."""
    return BM25Index(LexicalSettings(), training_set.passages).search


def mine_hard_negatives(
    training_set: TrainingSet, settings: MiningSettings, ranker: Ranker, miner: str, is_filtered_later: bool = False
) -> TrainingSet:
    """The set with mined negatives in place of its own; all candidates where `filter_negatives` chooses from them."""
    queries, passages = training_set.queries, training_set.passages
    if is_filtered_later:
        settings = replace(
            settings, max_score_ratio=None, score_margin=None, max_score=None, cross_encoder=None,
            negatives_per_query=settings.rank_to,
        )  # fmt: skip
    depth = count_mining_ranks(settings, max(len(query.positives) for query in queries))
    depth += max(len(training_set.get_unranked_ids(query.id)) for query in queries)
    ranking = ranker([query.text for query in queries], min(depth, len(passages)))
    negatives = [
        select_negatives(query, rows[is_ranked], scores[is_ranked], settings)
        for query, rows, scores in zip(queries, ranking.rows, ranking.scores, strict=True)
        for is_ranked in [_find_ranked(training_set, query, rows)]
    ]
    mined_queries = [replace(q, negatives=rows, scores=None) for q, rows in zip(queries, negatives, strict=True)]
    facts = {"miner": miner, **_describe_settings(settings), "mined": sum(map(len, negatives))}
    return training_set.with_queries(mined_queries, negatives=facts)


def _find_ranked(training_set: TrainingSet, query: TrainingQuery, rows: np.ndarray) -> np.ndarray:
    """Which of the rows the task may rank for the query."""
    ids, unranked = training_set.passage_ids, training_set.get_unranked_ids(query.id)
    if ids is None or not unranked:
        return np.ones(len(rows), dtype=bool)
    return np.array([ids[int(row)] not in unranked for row in rows], dtype=bool)


def filter_negatives(
    training_set: TrainingSet, settings: MiningSettings, scorer: PairScorer, advance: AdvanceProgress
) -> TrainingSet:
    """The set without the negatives that a cross-encoder scores too high; of the others each query keeps the first."""
    queries, candidates = training_set.queries, [query.positives + query.negatives for query in training_set.queries]
    logits = scorer.score_candidates(training_set, candidates, advance)
    kept = []
    all_scores = map(to_probabilities, logits) if settings.score_scale == "probability" else logits
    for query, scores in zip(queries, all_scores, strict=True):
        positives, negatives = np.split(scores, [len(query.positives)])
        is_kept = negatives <= compute_score_limit(float(positives.max()), settings)
        kept.append(tuple(np.array(query.negatives, dtype=int)[is_kept][: settings.negatives_per_query].tolist()))
    before = sum(len(query.negatives) for query in queries)
    facts = {
        **(training_set.facts.get("negatives") or {"source": settings.source}),
        "filter": {
            "cross_encoder": scorer.model, "weights": scorer.settings["weights"], "scale": settings.score_scale,
            **_describe_limits(settings), "keep": settings.negatives_per_query,
            "candidates": before, "kept": sum(map(len, kept)),
            "queries_without_negatives": sum(not rows for rows in kept),
        },
    }  # fmt: skip
    filtered = [_with_negatives(query, rows) for query, rows in zip(queries, kept, strict=True)]
    return training_set.with_queries(filtered, negatives=facts)


def _with_negatives(query: TrainingQuery, rows: tuple[int, ...]) -> TrainingQuery:
    """The query with some of its own negatives, and their scores where the data has scores."""
    scores = query.scores
    if scores is not None:
        by_row = dict(zip(query.negatives, scores[len(query.positives) :], strict=True))
        scores = (*scores[: len(query.positives)], *(by_row[row] for row in rows))
    return replace(query, negatives=rows, scores=scores)


def _describe_settings(settings: MiningSettings) -> dict[str, Any]:
    """The settings as plans, mined files and model cards store them; these keys are older than the recipe's."""
    ratio = {} if settings.max_score_ratio is None else {"margin": settings.max_score_ratio}
    ranks = {"first": settings.rank_from, "last": settings.rank_to}
    others = {key: value for key, value in _describe_limits(settings).items() if key != "max_score_ratio"}
    return {"source": settings.source, **ranks, **ratio, **others, "keep": settings.negatives_per_query}


def _describe_limits(settings: MiningSettings) -> dict[str, float]:
    limits = {name: getattr(settings, name) for name in ("max_score_ratio", "score_margin", "max_score")}
    return {name: limit for name, limit in limits.items() if limit is not None}


def count_mining_ranks(settings: MiningSettings, most_positives: int) -> int:
    """How many ranks must be searched, if a query has at most so many positives among them."""
    needs_positive = settings.max_score_ratio is not None or settings.score_margin is not None
    return SCORE_DEPTH if needs_positive else settings.rank_to + most_positives


def select_negatives(
    query: TrainingQuery, rows: np.ndarray, scores: np.ndarray, settings: MiningSettings
) -> tuple[int, ...]:
    """The ranked rows that are a query's hard negatives, in the order of their ranks."""
    relevant = np.isin(rows, query.positives)
    rank = np.cumsum(~relevant)  # from 1, counted without the positives
    selected = ~relevant & (rank >= settings.rank_from) & (rank <= settings.rank_to)
    if settings.has_filter and len(scores):
        best_positive = scores[relevant].max() if relevant.any() else scores[-1]
        selected &= scores <= compute_score_limit(float(best_positive), settings)
    return tuple(int(row) for row in rows[selected][: settings.negatives_per_query])


def compute_score_limit(best_positive: float, settings: MiningSettings) -> float:
    """The score that a negative may have at most; a share of a score below zero is below it too."""
    limits = [np.inf]
    if (ratio := settings.max_score_ratio) is not None:
        limits.append(ratio * best_positive if best_positive > 0 else (2 - ratio) * best_positive)
    if settings.score_margin is not None:
        limits.append(best_positive - settings.score_margin)
    if settings.max_score is not None:
        limits.append(settings.max_score)
    return min(limits)


def write_hard_negatives(training_set: TrainingSet, file: Path, settings: MiningSettings) -> None:
    """Write a mined file for this and other trainings."""
    rows = [{"query": query.text, "negatives": list(query.negatives)} for query in training_set.queries]
    description = {
        "set": training_set.name,
        "content": _fingerprint(training_set),
        "negatives": training_set.facts["negatives"],
        "settings": asdict(settings),
    }
    lines = [{**description, CHECKSUM: _compute_checksum(description, rows)}, *rows]
    write_file_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def read_hard_negatives(training_set: TrainingSet, file: Path, settings: MiningSettings | None = None) -> TrainingSet:
    """The set with the negatives of a mined file, which must have been mined by `settings` where they are given."""
    if not file.is_file():
        raise MissingError(f"there is no file of mined negatives at {file}", "leave mining.file out to mine again")
    try:
        description, *lines = map(parse_json, file.read_text(encoding="utf-8").splitlines())
        content, negatives = description["content"], [tuple(map(int, line["negatives"])) for line in lines]
        checksum = description.pop(CHECKSUM, None)  # files of an earlier version have none
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(f"{file} is not a file of mined negatives: {problem}", MINE_AGAIN) from problem
    if checksum not in (None, _compute_checksum(description, lines)):
        raise DataError(f"{file} changed since it was written: its checksum is wrong", MINE_AGAIN)
    if content != _fingerprint(training_set) or len(negatives) != len(training_set.queries):
        raise DataError(f"{file} was mined for other queries or passages", MINE_AGAIN)
    if not all(0 <= row < len(training_set.passages) for rows in negatives for row in rows):
        raise DataError(f"{file} has negatives that are no passages of {training_set.name}", MINE_AGAIN)
    mined_by = description.get("settings")  # files of an earlier version do not say it
    if settings and mined_by and (changes := describe_changes(mined_by, asdict(settings))):
        raise DataError(f"{file} was mined otherwise: {changes}", "give the old values, or delete it to mine again")
    pairs = zip(training_set.queries, negatives, strict=True)
    is_given = description["negatives"].get("source") == "given"
    queries = [
        _with_negatives(query, rows) if is_given else replace(query, negatives=rows, scores=None)
        for query, rows in pairs
    ]
    return training_set.with_queries(queries, negatives=description["negatives"])


def _compute_checksum(description: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([description, rows], sort_keys=True).encode()).hexdigest()


def _fingerprint(training_set: TrainingSet) -> str:
    """A digest of the queries and passages that row numbers refer to."""
    queries = hashlib.sha256(json.dumps([query.text for query in training_set.queries]).encode()).hexdigest()
    return hashlib.sha256(f"{training_set.fingerprint} {queries}".encode()).hexdigest()
