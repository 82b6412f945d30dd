"""The adaptor of Search-Adaptor (arXiv 2310.08750): a small network that adds a correction to each stored vector.

A vector v becomes v + W2 relu(W1 v + b1) + b2; queries and documents share it. With one layer it is linear: v + W1 v +
b1. The result is normalized unless the method compares by dot product. It needs no language model: it is applied to
stored vectors when they are read.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load as tensors_of

from retbench.cards.method import Similarity
from retbench.encoders.postprocessing import normalize_vectors
from retbench.errors import DataError, MissingError
from retbench.system.checksums import compute_sha256

ADAPTOR_FILE = "adaptor.safetensors"


@dataclass(frozen=True)
class Adaptor:
    """The float32 tensors of the network: `first.*`, and `last.*` if it has two layers."""

    tensors: dict[str, np.ndarray]
    similarity: Similarity = "cosine"

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Apply the adaptor. For cosine the result has length one."""
        width = self.tensors["first.weight"].shape[1]
        if vectors.shape[1] != width:
            raise DataError(
                f"the adaptor was trained for vectors of width {width}, but the vectors have width {vectors.shape[1]}",
                "train the adaptor again",
            )
        correction = vectors @ self.tensors["first.weight"].T + self.tensors["first.bias"]
        if "last.weight" in self.tensors:
            correction = np.maximum(correction, 0) @ self.tensors["last.weight"].T + self.tensors["last.bias"]
        if self.similarity == "dot":
            return np.asarray((vectors + correction).astype(np.float32))
        return normalize_vectors(vectors + correction)


def load_adaptor(file: Path, checksum: str, similarity: Similarity) -> Adaptor:
    """Load an adaptor and verify its checksum."""
    if not file.is_file():
        raise MissingError(f"no adaptor at {file}", "restore its folder, or train it again")
    if compute_sha256(file) != checksum:
        raise DataError(f"the checksum of {file} differs from the model card", "restore its folder, or train it again")
    return Adaptor(tensors_of(file.read_bytes()), similarity)
