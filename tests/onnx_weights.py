"""The weights of a BERT out of an ONNX file, under the names of transformers: a small reader of protocol buffers.

Linear layers are stored transposed and without a name; the node that multiplies by them tells where they belong.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

GRAPH, NODE, INITIALIZER = 7, 1, 5  # fields of ModelProto and GraphProto
INPUT, NAME, OPERATION = 1, 3, 4  # of NodeProto
DIMENSIONS, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9  # of TensorProto
FLOAT = 1


def read_onnx_weights(data: bytes) -> dict[str, np.ndarray]:
    """The float tensors of the model, by the names of transformers."""
    (graph,) = [value for field, value in _iterate_fields(memoryview(data)) if field == GRAPH]
    parts = list(_iterate_fields(graph))
    tensors = dict(_read_tensor(value) for field, value in parts if field == INITIALIZER)
    weights = {name: tensor for name, tensor in tensors.items() if tensor is not None and "::" not in name}
    for node in (value for field, value in parts if field == NODE):
        found = list(_iterate_fields(node))
        names = [bytes(value).decode() for field, value in found if field == INPUT]
        (path,) = [bytes(value).decode() for field, value in found if field == NAME] or [""]
        for name in names:
            if name.startswith("onnx::MatMul") and (tensor := tensors[name]) is not None:
                weights[path.removesuffix("/MatMul").strip("/").replace("/", ".") + ".weight"] = tensor.T.copy()
    return weights


def _read_tensor(data: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and values; None for tensors that are not float."""
    fields: dict[int, Any] = {}
    dimensions: list[int] = []
    for field, value in _iterate_fields(data):
        if field == DIMENSIONS:
            dimensions += [value] if isinstance(value, int) else list(_read_packed(value))
        fields[field] = value
    name = bytes(fields[TENSOR_NAME]).decode()
    if fields[DATA_TYPE] != FLOAT or RAW_DATA not in fields:
        return name, None
    return name, np.frombuffer(fields[RAW_DATA], dtype="<f4").reshape(dimensions)


def _iterate_fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of one message: numbers as int, everything else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_number(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _read_number(data, position)
            yield tag >> 3, value
            continue
        size, position = (8, position) if kind == 1 else (4, position) if kind == 5 else _read_number(data, position)
        yield tag >> 3, data[position : position + size]
        position += size


def _read_packed(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _read_number(data, position)
        yield value


def _read_number(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
