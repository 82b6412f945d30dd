"""Pools: a ranking is taken apart query by query, its head put in a new order, and put together again.

What lies below the depth keeps its order behind the head. Windows go from the last candidate to the first, so that a
good document can climb all the way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from retbench.errors import DataError
from retbench.retrievers.ranking import Ranking


class Pool(NamedTuple):
    """One query and its candidates, best first. `number` is the query's row in the collection."""

    number: int
    query: str
    rows: np.ndarray
    scores: np.ndarray

    def take(self, order: np.ndarray | slice) -> "Pool":
        """Some candidates, in this order."""
        return Pool(self.number, self.query, self.rows[order], self.scores[order])


class Reranker(Protocol):
    """What the pipeline codes against; nothing wider."""

    @property
    def depth(self) -> int:
        """How many candidates it takes."""
        ...

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """The candidates' new order, as positions, and the scores that fall along it."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was read, written, cut and repaired."""
        ...

    def first(self) -> dict[str, Any]:
        """The first prompt and its answer, in plain sight."""
        ...


@dataclass(frozen=True)
class Reranked:
    """A ranking in its new order, and what each query took."""

    ranking: Ranking
    seconds: list[float]


def rerank(ranking: Ranking, queries: Sequence[str], reranker: Reranker, on_query: Callable[[], None]) -> Reranked:
    """Every query's head through the reranker."""
    rows, scores, seconds = [], [], []
    for number, (query, found, values) in enumerate(zip(queries, ranking.rows, ranking.scores, strict=True)):
        started = time.perf_counter()
        pool = Pool(number, query, found[: reranker.depth], values[: reranker.depth])
        order, new = reranker(pool) if len(pool.rows) > 1 else (np.arange(len(pool.rows)), pool.scores)
        if len(lost := np.flatnonzero(~np.isfinite(new))):
            raise DataError(
                f"a score for {query[:60]!r} is no number: that of row {pool.rows[order[lost[0]]]} of the corpus",
                "try --set dtype=float32, or another model",
            )
        tail = found[reranker.depth :]
        below = (float(new[-1]) if len(new) else 0.0) - 1 - np.arange(len(tail))
        rows.append(np.concatenate((pool.rows[order], tail)))
        scores.append(np.concatenate((new, below)))
        seconds.append(time.perf_counter() - started)
        on_query()
    return Reranked(Ranking(rows, scores), seconds)


def windows(count: int, window: int, step: int) -> Iterator[slice]:
    """From the last candidates to the first; without a window, or with fewer candidates than it holds, all at once."""
    end = count
    while window and end > window:
        yield slice(end - window, end)
        end -= step
    yield slice(0, end)


def falling(count: int) -> np.ndarray:
    """Scores for a reranker that knows only an order."""
    return np.arange(count, 0, -1, dtype=np.float64)
