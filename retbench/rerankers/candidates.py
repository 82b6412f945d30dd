"""Candidates of one query, and the loop that reranks every query of a ranking.

Documents below the depth keep their order after the reranked ones. Windows move from the last candidate to the first,
so that a relevant document can move up to rank 1.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from retbench.errors import DataError
from retbench.retrievers.ranking import Ranking

T = TypeVar("T")
MIN_DOCUMENT_TOKENS = 8  # a document cut shorter than this is left out


class Candidates(NamedTuple):
    """One query and its candidates, best first. `query_row` is the query's row in the collection."""

    query_row: int
    query: str
    rows: np.ndarray
    scores: np.ndarray

    def take(self, order: np.ndarray | slice) -> "Candidates":
        """Return the candidates at these positions, in this order."""
        return Candidates(self.query_row, self.query, self.rows[order], self.scores[order])


class Reranker(Protocol):
    """A reranker with its model loaded."""

    @property
    def depth(self) -> int:
        """The number of candidates per query."""
        ...

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Return the new order, as positions in `candidates`, and the descending scores in that order."""
        ...

    def collect_statistics(self) -> dict[str, Any]:
        """Return the counts for the record: requests, tokens, texts cut, answers repaired."""
        ...

    def sample(self) -> dict[str, Any]:
        """Return the first prompt and its answer for `sample.json`."""
        ...


@dataclass(frozen=True)
class RerankedRanking:
    """A reranked ranking and the time each query took."""

    ranking: Ranking
    seconds_per_query: list[float]


def rerank_queries(
    ranking: Ranking, queries: Sequence[str], reranker: Reranker, on_query: Callable[[], None]
) -> RerankedRanking:
    """Rerank the first `reranker.depth` documents of every query."""
    rows, scores, seconds = [], [], []
    for query_row, (query, document_rows, first_stage_scores) in enumerate(
        zip(queries, ranking.rows, ranking.scores, strict=True)
    ):
        started = time.perf_counter()
        candidates = Candidates(query_row, query, document_rows[: reranker.depth], first_stage_scores[: reranker.depth])
        order, new_scores = np.arange(len(candidates.rows)), candidates.scores
        if len(candidates.rows) > 1:
            order, new_scores = reranker.rerank(candidates)
        _check_finite(new_scores, order, candidates)
        tail = document_rows[reranker.depth :]
        tail_scores = (float(new_scores[-1]) if len(new_scores) else 0.0) - 1 - np.arange(len(tail))
        rows.append(np.concatenate((candidates.rows[order], tail)))
        scores.append(np.concatenate((new_scores, tail_scores)))
        seconds.append(time.perf_counter() - started)
        on_query()
    return RerankedRanking(Ranking(rows, scores), seconds)


def _check_finite(scores: np.ndarray, order: np.ndarray, candidates: Candidates) -> None:
    if len(positions := np.flatnonzero(~np.isfinite(scores))):
        row = candidates.rows[order[positions[0]]]
        raise DataError(
            f"the score of document row {row} for query {candidates.query[:60]!r} is NaN or infinite",
            "try --set dtype=float32, or another model",
        )


def iterate_windows(count: int, window: int, step: int) -> Iterator[slice]:
    """Yield windows from the last candidates to the first; one window for all if `window` is 0 or holds them all."""
    end = count
    while window and end > window:
        yield slice(end - window, end)
        end -= step
    yield slice(0, end)


def make_descending_scores(count: int) -> np.ndarray:
    """Return the scores count, ..., 2, 1 for a reranker that gives only an order."""
    return np.arange(count, 0, -1, dtype=np.float64)


def find_largest_share(max_tokens: int, build: Callable[[int], T], fits: Callable[[T], bool]) -> T | None:
    """Return what `build` makes of the largest number of tokens per document that fits; None if no number fits.

    Used where a prompt is too long: every document gets the same number of tokens, MIN_DOCUMENT_TOKENS to `max_tokens`.
    """
    best, low, high = None, MIN_DOCUMENT_TOKENS, max_tokens
    while low <= high:
        share = (low + high) // 2
        result = build(share)
        if fits(result):
            best, low = result, share + 1
        else:
            high = share - 1
    return best
