"""Vectors put to length one."""

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; a zero stays zero and is found by whoever stores it."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray((vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32))
