"""Reranking by lexical query likelihood: documents are sorted by the probability of the query under their words."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.rerankers.candidates import Candidates
from retbench.retrievers.query_likelihood import DirichletIndex


@dataclass(frozen=True)
class LexicalQLReranker:
    """Sorts candidates by log P(query | document). Candidates without any query word keep their order at the end."""

    index: DirichletIndex
    depth: int

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Sort by descending likelihood; ties keep the first stage's order."""
        likelihoods = self.index.compute_log_likelihoods(candidates.query)[candidates.rows]
        finite = likelihoods[np.isfinite(likelihoods)]
        likelihoods = np.where(np.isfinite(likelihoods), likelihoods, finite.min() - 1 if len(finite) else 0.0)
        order = np.argsort(-likelihoods, kind="stable")
        return order, likelihoods[order]

    def collect_statistics(self) -> dict[str, Any]:
        """Return nothing: no text is cut."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Return nothing: there is no prompt."""
        return {}
