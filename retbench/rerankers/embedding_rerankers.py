"""Reranking by vectors: candidates in the order of the cosine between their stored vectors and one vector that asks.

What differs is who asks: the plain query, the query moved towards the first documents (Rocchio's feedback), or a prompt
that lists them (`listing.py`). Documents are never embedded again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from retbench.cards.reranker_settings import Rocchio
from retbench.rerankers.candidates import Pool, falling, windows

Documents = Callable[[np.ndarray], np.ndarray]  # rows of the collection to unit vectors


class Asker(Protocol):
    """From a query and its candidates to the vector they are compared with."""

    def __call__(self, pool: Pool) -> np.ndarray:
        """A vector of length one."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was read and cut."""
        ...

    def first(self) -> dict[str, Any]:
        """The first prompt, where there is one."""
        ...


@dataclass(frozen=True)
class ByVectors:
    """The reranker around an asker."""

    ask: Asker
    documents: Documents
    depth: int
    window: int = 0
    step: int = 10

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """By cosine; over several windows the order alone is left."""
        order, cosines = np.arange(len(pool.rows)), np.zeros(0)
        parts = list(windows(len(order), self.window, self.step))
        for part in parts:
            within, cosines = self._compared(pool.take(order[part]))
            order[part] = order[part][within]
        return order, cosines if len(parts) == 1 else falling(len(order))

    def _compared(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        cosines = self.documents(pool.rows) @ self.ask(pool)
        order = np.lexsort((pool.rows, -cosines))  # a tie goes to the lower row, as in every search here
        return order, cosines[order].astype(np.float64)

    def facts(self) -> dict[str, Any]:
        """What the asker read."""
        return self.ask.facts()

    def first(self) -> dict[str, Any]:
        """The asker's first prompt."""
        return self.ask.first()


@dataclass(frozen=True)
class Plain:
    """The query's own vector."""

    queries: np.ndarray

    def __call__(self, pool: Pool) -> np.ndarray:
        """The vector as it was stored."""
        return np.asarray(self.queries[pool.number])

    def facts(self) -> dict[str, Any]:
        """Nothing is read."""
        return {}

    def first(self) -> dict[str, Any]:
        """There is no prompt."""
        return {}


@dataclass(frozen=True)
class Feedback:
    """Rocchio's feedback: the first documents are taken as relevant and, with a gamma, the last as not."""

    queries: np.ndarray
    documents: Documents
    settings: Rocchio
    counts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pool: Pool) -> np.ndarray:
        """The moved vector, at length one again."""
        settings = self.settings
        moved = settings.alpha * self.queries[pool.number]
        moved = moved + settings.beta * self.documents(pool.rows[: settings.documents]).mean(axis=0)
        if settings.gamma:
            moved = moved - settings.gamma * self.documents(pool.rows[-settings.documents :]).mean(axis=0)
        length = float(np.linalg.norm(moved))
        return np.asarray((moved / (length or 1.0)).astype(np.float32))

    def facts(self) -> dict[str, Any]:
        """Nothing is read."""
        return {}

    def first(self) -> dict[str, Any]:
        """There is no prompt."""
        return {}
