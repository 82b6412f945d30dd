"""How many weights a model folder has, and how many bytes a weight takes, from file headers and without torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.engines.model_folders import MAX_HEADER_BYTES
from retbench.engines.text_config import has_text_config, read_text_settings

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}
BYTES_PER_TRAINED_WEIGHT = 16  # the float32 weight, its gradient and AdamW's two moments
TABLE_NAMES = (
    "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight", "wte.weight", "embed_in.weight",
    "shared.weight",
)  # fmt: skip
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
USED_EXPERTS = ("num_experts_per_tok", "experts_per_token", "moe_top_k")


@dataclass(frozen=True)
class ParameterCounts:
    """All stored weights, those of the token embeddings, and those that are multiplied for each token.

    Active are all weights without the token embeddings, an output head over the vocabulary, and the experts that a
    token does not use. None where names and config do not tell.
    """

    total: int
    embedding: int | None = None
    active: int | None = None


def count_parameters_by_use(folder: Path) -> ParameterCounts | None:
    """Count the weights of a folder; None without safetensors. Of a multimodal model only the total is known."""
    shapes = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _read_entries(file)}
    if not shapes:
        return None
    total = sum(map(math.prod, shapes.values()))
    tables = [shape for name, shape in shapes.items() if f".{name}".endswith(tuple(f".{one}" for one in TABLE_NAMES))]
    if has_text_config(folder) or len(tables) != 1:
        return ParameterCounts(total)
    settings, embedding = read_text_settings(folder), math.prod(tables[0])
    vocabulary_tables = sum(shape == tables[0] for shape in shapes.values())  # with an output head of its own
    idle = _count_idle_experts(settings, sum(math.prod(s) for name, s in shapes.items() if ".experts." in name))
    return ParameterCounts(total, embedding, None if idle is None else total - vocabulary_tables * embedding - idle)


def _count_idle_experts(settings: dict[str, Any], in_experts: int) -> int | None:
    """The weights of the experts that a token does not use; None if the config does not say how many it uses."""
    if not in_experts:
        return 0
    experts, used = (
        next((settings[n] for n in names if settings.get(n)), None) for names in (EXPERT_COUNTS, USED_EXPERTS)
    )
    if type(experts) is not int or type(used) is not int or in_experts % experts or not 0 < used <= experts:
        return None
    return in_experts // experts * (experts - used)


def count_parameters(folder: Path) -> int:
    """The number of weights in the safetensors files of a folder."""
    return sum(map(math.prod, read_shapes(folder)))


def read_shapes(folder: Path) -> list[list[int]]:
    """The shapes of all weights in the safetensors files of a folder."""
    return [shape for file in sorted(folder.glob("*.safetensors")) for _, shape in _read_entries(file)]


def _read_entries(file: Path) -> list[tuple[str, list[int]]]:
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(min(length, MAX_HEADER_BYTES)))
    return [(name, entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
