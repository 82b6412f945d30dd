"""Contrasts: which queries meet which passages in one step. Everything follows from the seed and the step's number,
so a resumed run sees what an uninterrupted one would have seen.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from retbench.cards.recipe import BatchSettings, ContrastiveSettings
from retbench.errors import DataError
from retbench.training.training_set import TrainingQuery, TrainingSet


@dataclass(frozen=True)
class ContrastiveBatch:
    """Queries and passages of one contrast: passage i is the positive of query i, then come the negatives.

    `owner[p]` is the query that brought passage p. `relevant[q, p]` marks what is known to answer a query.
    `teacher[p]` is a teacher's score of passage p for its owner. `lists` are prompts, one a query, that list its own
    passages.
    """

    queries: list[str]
    passages: list[str]
    owner: np.ndarray
    relevant: np.ndarray
    teacher_scores: np.ndarray | None = None
    list_prompts: tuple[str, ...] = ()


class BatchSource(Protocol):
    """Whatever groups are drawn from."""

    def __len__(self) -> int:
        """How many queries an epoch has."""
        ...

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The contrast of these queries."""
        ...


@dataclass(frozen=True)
class BatchSampler:
    """Which queries a step takes: every epoch is another permutation, cut into whole updates."""

    queries: int
    batch: BatchSettings
    seed: int

    @property
    def queries_per_step(self) -> int:
        """Queries of one update; a set smaller than that is one, of whole contrasts where it holds any."""
        most = min(self.batch.train_batch_size, self.queries)
        return most - most % self.batch.contrastive_batch_size if most > self.batch.contrastive_batch_size else most

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self.queries // self.queries_per_step

    def sample_rows(self, step: int) -> tuple[int, list[np.ndarray]]:
        """The epoch and the rows of a step's contrasts."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = _permute_queries(self.queries, self.seed, epoch)[
            place * self.queries_per_step : (place + 1) * self.queries_per_step
        ]
        return epoch, [
            rows[start : start + self.batch.contrastive_batch_size]
            for start in range(0, len(rows), self.batch.contrastive_batch_size)
        ]


@lru_cache(maxsize=1)
def _permute_queries(queries: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(queries)


@dataclass(frozen=True)
class LabelledBatchSource:
    """Groups of a training set: one positive of each query, and `negatives` of its negatives, drawn anew each epoch."""

    training_set: TrainingSet
    settings: ContrastiveSettings
    seed: int

    def __post_init__(self) -> None:
        if self.settings.distillation_weight and any(query.scores is None for query in self.training_set.queries):
            raise DataError(
                f"{self.training_set.name} has no teacher's scores", "add `scores`, or set distillation = 0"
            )
        if len(self.training_set.queries) * (1 + self.settings.hard_negatives) < 2:
            raise DataError(f"{self.training_set.name} holds one pair: there is nothing to contrast", "add pairs")

    def __len__(self) -> int:
        return len(self.training_set.queries)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The contrast of these queries."""
        queries = [self.training_set.queries[int(row)] for row in rows]
        drawn = [
            self._draw_passages(query, (self.seed, epoch, int(row))) for query, row in zip(queries, rows, strict=True)
        ]
        picks = [(q, *pick) for q, (first, _) in enumerate(drawn) for pick in first]
        picks += [(q, *pick) for q, (_, rest) in enumerate(drawn) for pick in rest]
        right = [set(query.positives) for query in queries]
        relevant = np.array([[passage in positives for _, passage, _ in picks] for positives in right])
        teacher = np.array([score for _, _, score in picks]) if self.settings.distillation_weight else None
        passages = [self.training_set.passages[passage] for _, passage, _ in picks]
        return ContrastiveBatch(
            [q.text for q in queries], passages, np.array([q for q, _, _ in picks]), relevant, teacher
        )

    def _draw_passages(
        self, query: TrainingQuery, seed: tuple[int, ...]
    ) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """A positive and the negatives, each with a teacher's score where there is one."""
        draw, count = np.random.default_rng(seed), self.settings.hard_negatives
        scores = query.scores or (0.0,) * (len(query.positives) + len(query.negatives))
        good = list(zip(query.positives, scores, strict=False))
        bad = list(zip(query.negatives, scores[len(query.positives) :], strict=True))
        positive = good[int(draw.integers(len(good)))]
        # with fewer negatives than asked for, some come twice, as in Tevatron; with none, the others' must do
        if not (bad and count):
            return [positive], []
        chosen = draw.choice(len(bad), count, replace=len(bad) < count)
        return [positive], [bad[int(place)] for place in chosen]
