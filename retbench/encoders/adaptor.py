"""The adaptor of Search-Adaptor (arXiv 2310.08750): a small net that moves any stored vector a little.

A vector v becomes v + W2 relu(W1 v + b1) + b2, put to length one; queries and documents share it. With one layer it is
a plain linear map, v + W1 v + b1. It needs no model: it is applied to vectors as they are read.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load as tensors_of

from retbench.cards.checksums import cached_sha256
from retbench.encoders.postprocessing import normalize_vectors
from retbench.errors import DataError, MissingError

ADAPTOR_FILE = "adaptor.safetensors"


@dataclass(frozen=True)
class Adaptor:
    """The tensors of the net, in float32: `first.*`, and `last.*` where it has two layers."""

    tensors: dict[str, np.ndarray]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors moved, at length one again."""
        width = self.tensors["first.weight"].shape[1]
        if vectors.shape[1] != width:
            raise DataError(f"an adaptor for vectors of width {width} met width {vectors.shape[1]}", "train it again")
        added = vectors @ self.tensors["first.weight"].T + self.tensors["first.bias"]
        if "last.weight" in self.tensors:
            added = np.maximum(added, 0) @ self.tensors["last.weight"].T + self.tensors["last.bias"]
        moved = vectors + added
        return normalize_vectors(moved)


def load_adaptor(file: Path, checksum: str) -> Adaptor:
    """Read an adaptor that is what its card says."""
    if not file.is_file():
        raise MissingError(f"there is no adaptor at {file}", "bring its folder back, or train it again")
    if cached_sha256(file) != checksum:
        raise DataError(f"{file} is not the adaptor its card describes", "bring its folder back, or train it again")
    return Adaptor(tensors_of(file.read_bytes()))
