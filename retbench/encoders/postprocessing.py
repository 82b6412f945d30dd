"""Post-processing of vectors: remove what all vectors of a corpus have in common, then normalize again.

The states of a decoder without retrieval training are nearly parallel. Their mean and first principal components carry
no information about a text. Both are computed from the document vectors alone, in one pass, never from queries or
judgments.

    centre    minus the mean
    drop-top  minus the mean and the first principal components (All-but-the-Top, Mu and Viswanath 2018: 1% of them)
    whiten    minus the mean, every direction scaled to variance one (BERT-whitening, Su et al. 2021)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from retbench.cards.method import Method
from retbench.errors import UsageError
from retbench.store.shard_store import VectorBlock

NOISE_FLOOR = 1e-6  # relative to the largest variance; a component below it is numerical noise


def normalize_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one. A zero row stays zero; the check before storing reports it."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray((vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32))


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of some vectors."""

    mean: np.ndarray
    covariance: np.ndarray

    @staticmethod
    def compute(blocks: Iterable[VectorBlock]) -> "Moments":
        """Compute both in one pass in float64, block by block."""
        count, total, products = 0, np.zeros(1), np.zeros((1, 1))
        for block in blocks:
            vectors = block.vectors.astype(np.float64)
            count, total, products = count + len(vectors), total + vectors.sum(0), products + vectors.T @ vectors
        mean = total / count
        return Moments(mean, products / count - np.outer(mean, mean))


def fit_postprocessing(method: Method, blocks: Iterable[VectorBlock]) -> Callable[[np.ndarray], np.ndarray]:
    """Fit the post-processing of a method on the corpus vectors, and return it as a function."""
    moments = Moments.compute(blocks)
    matrix = _compute_matrix(method, moments.covariance) if method.post != "centre" else None

    def postprocess(vectors: np.ndarray) -> np.ndarray:
        centred = vectors - moments.mean
        return normalize_vectors(centred if matrix is None else centred @ matrix)

    return postprocess


def _compute_matrix(method: Method, covariance: np.ndarray) -> np.ndarray:
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    rank = int((variances > NOISE_FLOOR * variances[0]).sum())
    count = method.components or (max(1, len(variances) // 100) if method.post == "drop-top" else rank)
    if count > rank:
        raise UsageError(
            f"{method.name} uses {count} components, but the corpus has only {rank}", f"give components={rank} or fewer"
        )
    components = directions[:, :count]
    if method.post == "drop-top":
        return np.asarray(np.eye(len(variances)) - components @ components.T)
    return np.asarray(components / np.sqrt(variances[:count]))
