"""Reranking by query likelihood over words: the document that would most likely have asked the query comes first."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.rerankers.candidates import Pool
from retbench.retrievers.query_likelihood import Dirichlet


@dataclass(frozen=True)
class ByWords:
    """Candidates by log P(query | document); those without a word of the query keep their order at the end."""

    index: Dirichlet
    depth: int

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """By falling likelihood; equal ones keep their order."""
        values = self.index.likelihoods(pool.query)[pool.rows]
        known = values[np.isfinite(values)]
        values = np.where(np.isfinite(values), values, known.min() - 1 if len(known) else 0.0)
        order = np.argsort(-values, kind="stable")
        return order, values[order]

    def facts(self) -> dict[str, Any]:
        """Nothing is cut."""
        return {}

    def first(self) -> dict[str, Any]:
        """There is no prompt."""
        return {}
