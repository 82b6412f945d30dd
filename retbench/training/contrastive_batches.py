"""Contrasts: which queries meet which passages in one step. Everything follows from the seed and the step's number,
so a resumed run sees what an uninterrupted one would have seen.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from retbench.cards.recipe import Batch, Contrast
from retbench.errors import DataError
from retbench.training.training_set import Query, TrainingSet


@dataclass(frozen=True)
class Group:
    """Queries and passages of one contrast: passage i is the positive of query i, then come the negatives.

    `owner[p]` is the query that brought passage p. `relevant[q, p]` marks what is known to answer a query.
    `teacher[p]` is a teacher's score of passage p for its owner. `lists` are prompts, one a query, that list its own
    passages.
    """

    queries: list[str]
    passages: list[str]
    owner: np.ndarray
    relevant: np.ndarray
    teacher: np.ndarray | None = None
    lists: tuple[str, ...] = ()


class Source(Protocol):
    """Whatever groups are drawn from."""

    def __len__(self) -> int:
        """How many queries an epoch has."""
        ...

    def group(self, rows: np.ndarray, epoch: int) -> Group:
        """The contrast of these queries."""
        ...


@dataclass(frozen=True)
class Order:
    """Which queries a step takes: every epoch is another permutation, cut into whole updates."""

    queries: int
    batch: Batch
    seed: int

    @property
    def update(self) -> int:
        """Queries of one update; a set smaller than that is one, of whole contrasts where it holds any."""
        most = min(self.batch.update, self.queries)
        return most - most % self.batch.contrast if most > self.batch.contrast else most

    @property
    def steps(self) -> int:
        """Updates of one epoch."""
        return self.queries // self.update

    def groups(self, step: int) -> tuple[int, list[np.ndarray]]:
        """The epoch and the rows of a step's contrasts."""
        epoch, place = divmod(step, self.steps)
        rows = _permutation(self.queries, self.seed, epoch)[place * self.update : (place + 1) * self.update]
        return epoch, [rows[start : start + self.batch.contrast] for start in range(0, len(rows), self.batch.contrast)]


@lru_cache(maxsize=1)
def _permutation(queries: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(queries)


@dataclass(frozen=True)
class Labelled:
    """Groups of a training set: one positive of each query, and `negatives` of its negatives, drawn anew each epoch."""

    training: TrainingSet
    contrast: Contrast
    seed: int

    def __post_init__(self) -> None:
        if self.contrast.distillation and any(query.scores is None for query in self.training.queries):
            raise DataError(f"{self.training.name} has no teacher's scores", "add `scores`, or set distillation = 0")
        if len(self.training.queries) * (1 + self.contrast.negatives) < 2:
            raise DataError(f"{self.training.name} holds one pair: there is nothing to contrast", "add pairs")

    def __len__(self) -> int:
        return len(self.training.queries)

    def group(self, rows: np.ndarray, epoch: int) -> Group:
        """The contrast of these queries."""
        queries = [self.training.queries[int(row)] for row in rows]
        drawn = [self._draw(query, (self.seed, epoch, int(row))) for query, row in zip(queries, rows, strict=True)]
        picks = [(q, *pick) for q, (first, _) in enumerate(drawn) for pick in first]
        picks += [(q, *pick) for q, (_, rest) in enumerate(drawn) for pick in rest]
        right = [set(query.positives) for query in queries]
        relevant = np.array([[passage in positives for _, passage, _ in picks] for positives in right])
        teacher = np.array([score for _, _, score in picks]) if self.contrast.distillation else None
        passages = [self.training.passages[passage] for _, passage, _ in picks]
        return Group([q.text for q in queries], passages, np.array([q for q, _, _ in picks]), relevant, teacher)

    def _draw(self, query: Query, seed: tuple[int, ...]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """A positive and the negatives, each with a teacher's score where there is one."""
        draw, count = np.random.default_rng(seed), self.contrast.negatives
        scores = query.scores or (0.0,) * (len(query.positives) + len(query.negatives))
        good = list(zip(query.positives, scores, strict=False))
        bad = list(zip(query.negatives, scores[len(query.positives) :], strict=True))
        positive = good[int(draw.integers(len(good)))]
        # with fewer negatives than asked for, some come twice, as in Tevatron; with none, the others' must do
        if not (bad and count):
            return [positive], []
        chosen = draw.choice(len(bad), count, replace=len(bad) < count)
        return [positive], [bad[int(place)] for place in chosen]
