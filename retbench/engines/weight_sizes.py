"""How many weights a model folder has, and how many bytes a weight takes, from file headers and without torch."""

import json
import math
from pathlib import Path

from retbench.engines.model_folders import MAX_HEADER_BYTES

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}
BYTES_PER_TRAINED_WEIGHT = 16  # the float32 weight, its gradient and AdamW's two moments


def count_parameters(folder: Path) -> int:
    """The number of weights in the safetensors files of a folder."""
    return sum(map(math.prod, read_shapes(folder)))


def read_shapes(folder: Path) -> list[list[int]]:
    """The shapes of all weights in the safetensors files of a folder."""
    return [shape for file in sorted(folder.glob("*.safetensors")) for shape in _read_shapes_of_file(file)]


def _read_shapes_of_file(file: Path) -> list[list[int]]:
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(min(length, MAX_HEADER_BYTES)))
    return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
