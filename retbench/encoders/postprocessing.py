"""Post-processing: what all vectors of a corpus have in common is taken out, and the rest is put to length one again.

The states of an untrained decoder point nearly the same way; their mean and their few main directions say nothing about
a text. Fitted on the documents alone, in one pass over the stored vectors, never on queries or judgments.

    centre    minus the mean
    drop-top  minus the mean, without the main directions (All-but-the-Top, Mu and Viswanath 2018: a hundredth of them)
    whiten    minus the mean, every direction scaled to variance one (BERT-whitening, Su et al. 2021)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from retbench.cards.method import Method
from retbench.errors import UsageError
from retbench.store.shard_store import VectorBlock

NOISE_FLOOR = 1e-6  # of the largest variance: a direction below it has no variance of its own


def normalize_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; a zero stays zero and is found by whoever stores it."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray((vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32))


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of some vectors."""

    mean: np.ndarray
    covariance: np.ndarray

    @staticmethod
    def compute(blocks: Iterable[VectorBlock]) -> "Moments":
        """One pass in float64, block by block."""
        count, total, products = 0, np.zeros(1), np.zeros((1, 1))
        for block in blocks:
            vectors = block.vectors.astype(np.float64)
            count, total, products = count + len(vectors), total + vectors.sum(0), products + vectors.T @ vectors
        mean = total / count
        return Moments(mean, products / count - np.outer(mean, mean))


def fit_postprocessing(method: Method, blocks: Iterable[VectorBlock]) -> Callable[[np.ndarray], np.ndarray]:
    """The change that a method's `post` makes to any vector, learned from the corpus."""
    moments = Moments.compute(blocks)
    change = _compute_matrix(method, moments.covariance) if method.post != "centre" else None

    def after(vectors: np.ndarray) -> np.ndarray:
        moved = vectors - moments.mean
        if change is not None:
            moved = moved @ change
        return normalize_vectors(moved)

    return after


def _compute_matrix(method: Method, covariance: np.ndarray) -> np.ndarray:
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    real = int((variances > NOISE_FLOOR * variances[0]).sum())
    wanted = method.components or (max(1, len(variances) // 100) if method.post == "drop-top" else real)
    if wanted > real:
        raise UsageError(
            f"{method.name} asks for {wanted} components and the corpus has {real}", f"give components={real} or fewer"
        )
    main = directions[:, :wanted]
    if method.post == "drop-top":
        return np.asarray(np.eye(len(variances)) - main @ main.T)
    return np.asarray(main / np.sqrt(variances[:wanted]))
