"""Vectors in fewer bytes: half precision, or a byte a number with one scale a vector. Reading gives float32 again."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

VectorDtype = Literal["fp32", "fp16", "int8"]
Tensors = dict[str, np.ndarray]


class VectorFormat(NamedTuple):
    """How vectors are written, and what one number and one vector cost beside their row number."""

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
    """What one row costs on disk: its number and its vector."""
    form = VECTOR_FORMATS[vector_dtype]
    return np.dtype(np.int64).itemsize + dimension * form.bytes_per_number + form.bytes_per_vector


def decode_vectors(tensors: Tensors) -> np.ndarray:
    """What was written, as float32; what lost precision is brought back to length one."""
    vectors = tensors["vectors"]
    if vectors.dtype == np.float32:
        return vectors
    wide = vectors.astype(np.float32)
    if "scales" in tensors:
        wide *= tensors["scales"][:, None]
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
