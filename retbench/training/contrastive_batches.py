"""Which queries and passages make a contrastive batch.

Everything follows from the seed and the number of the step, so a resumed training sees the batches that an
uninterrupted one would have seen.
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
    """Queries and passages that are contrasted. Passage i is the positive of query i; the hard negatives follow.

    `owner[p]` is the query that passage p was drawn for. `relevant[q, p]` marks known positives. `teacher_scores[p]` is
    a teacher's score of passage p for its owner. `list_prompts` holds one listwise prompt for each query, and
    `instructions` the instruction of each query where they differ; None means the method's.
    """

    queries: list[str]
    passages: list[str]
    owner: np.ndarray
    relevant: np.ndarray
    teacher_scores: np.ndarray | None = None
    list_prompts: tuple[str, ...] = ()
    instructions: tuple[str | None, ...] = ()


class BatchSource(Protocol):
    """Builds contrastive batches from rows of a dataset."""

    def __len__(self) -> int:
        """The number of queries of an epoch."""
        ...

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The batch of these queries."""
        ...


@dataclass(frozen=True)
class BatchSampler:
    """Which queries each step takes. Every epoch is another permutation, divided into whole steps."""

    queries: int
    batch: BatchSettings
    seed: int

    @property
    def queries_per_step(self) -> int:
        """Queries of one step. A smaller dataset is one step, of whole contrastive batches if it has at least one."""
        available = min(self.batch.train_batch_size, self.queries)
        if available <= self.batch.contrastive_batch_size:
            return available
        return available - available % self.batch.contrastive_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return self.queries // self.queries_per_step

    def sample_rows(self, step: int) -> tuple[int, list[np.ndarray]]:
        """The epoch of a step, and the rows of its contrastive batches."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first, size = step_of_epoch * self.queries_per_step, self.batch.contrastive_batch_size
        rows = _permute_queries(self.queries, self.seed, epoch)[first : first + self.queries_per_step]
        return epoch, [rows[start : start + size] for start in range(0, len(rows), size)]


@lru_cache(maxsize=1)
def _permute_queries(queries: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(queries)


@dataclass(frozen=True)
class LabelledBatchSource:
    """Batches of a training set: one positive and `hard_negatives` negatives a query, drawn anew each epoch."""

    training_set: TrainingSet
    settings: ContrastiveSettings
    seed: int

    def __post_init__(self) -> None:
        name, queries = self.training_set.name, self.training_set.queries
        if self.settings.distillation_weight and any(query.scores is None for query in queries):
            raise DataError(
                f"{name} has no teacher scores, which distillation needs",
                "add `scores`, or set distillation_weight = 0",
            )
        if len(queries) * (1 + self.settings.hard_negatives) < 2:
            raise DataError(f"{name} holds one pair, and contrastive training needs at least two", "add pairs")

    def __len__(self) -> int:
        return len(self.training_set.queries)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The batch of these queries."""
        queries = [self.training_set.queries[int(row)] for row in rows]
        draws = [
            self._draw_passages(query, (self.seed, epoch, int(row))) for query, row in zip(queries, rows, strict=True)
        ]
        picks = [(owner, *passage) for owner, (positives, _) in enumerate(draws) for passage in positives]
        picks += [(owner, *passage) for owner, (_, negatives) in enumerate(draws) for passage in negatives]
        positive_sets = [set(query.positives) for query in queries]
        relevant = np.array([[passage in positives for _, passage, _ in picks] for positives in positive_sets])
        teacher_scores = np.array([score for _, _, score in picks]) if self.settings.distillation_weight else None
        passages = [self.training_set.passages[passage] for _, passage, _ in picks]
        owners = np.array([owner for owner, _, _ in picks])
        return ContrastiveBatch([query.text for query in queries], passages, owners, relevant, teacher_scores)

    def _draw_passages(
        self, query: TrainingQuery, seed: tuple[int, ...]
    ) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """One positive, and the negatives; each passage row comes with its teacher score, or 0."""
        generator, count = np.random.default_rng(seed), self.settings.hard_negatives
        scores = query.scores or (0.0,) * (len(query.positives) + len(query.negatives))
        positives = list(zip(query.positives, scores, strict=False))
        negatives = list(zip(query.negatives, scores[len(query.positives) :], strict=True))
        positive = positives[int(generator.integers(len(positives)))]
        # a query with too few negatives has some of them twice, as in Tevatron; one without has in-batch negatives only
        if not (negatives and count):
            return [positive], []
        chosen = generator.choice(len(negatives), count, replace=len(negatives) < count)
        return [positive], [negatives[int(index)] for index in chosen]
