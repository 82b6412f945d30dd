"""Storage formats of vectors: float32, float16, or int8 with one scale per vector. Reading gives float32."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

VectorDtype = Literal["fp32", "fp16", "int8"]
Tensors = dict[str, np.ndarray]


class VectorFormat(NamedTuple):
    """How vectors are encoded, and the bytes that one number and one vector take."""

    encode: Callable[[np.ndarray], Tensors]
    bytes_per_number: int
    bytes_per_vector: int = 0


def _encode_int8(vectors: np.ndarray) -> Tensors:
    scales = np.abs(vectors).max(axis=1).astype(np.float32) / np.float32(127)
    return {"vectors": np.rint(vectors / scales[:, None]).astype(np.int8), "scales": scales}


VECTOR_FORMATS: dict[VectorDtype, VectorFormat] = {
    "fp32": VectorFormat(lambda vectors: {"vectors": vectors}, 4),
    "fp16": VectorFormat(lambda vectors: {"vectors": vectors.astype(np.float16)}, 2),
    "int8": VectorFormat(_encode_int8, 1, 4),
}


def compute_row_bytes(dimension: int, vector_dtype: VectorDtype) -> int:
    """Bytes of one row on disk: its row number and its vector."""
    vector_format = VECTOR_FORMATS[vector_dtype]
    return np.dtype(np.int64).itemsize + dimension * vector_format.bytes_per_number + vector_format.bytes_per_vector


def decode_vectors(tensors: Tensors) -> np.ndarray:
    """Stored vectors as float32; those of a lossy format are normalized again."""
    vectors = tensors["vectors"]
    if vectors.dtype == np.float32:
        return vectors
    float_vectors = vectors.astype(np.float32)
    if "scales" in tensors:
        float_vectors *= tensors["scales"][:, None]
    return np.asarray(float_vectors / np.linalg.norm(float_vectors, axis=1, keepdims=True))
