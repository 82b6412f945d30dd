"""A model's rotary positions stretched as `--set rope` asks, through transformers' own parameters."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from retbench.cards.rope_scaling import parse_rope_scaling
from retbench.errors import UsageError

PLAIN_ROPE_KEYS = {"rope_type", "rope_theta", "partial_rotary_factor"}


def apply_rope_scaling(config: Any, word: str) -> None:
    """Change a text config; a model without one plain rope is refused."""
    rope, own = parse_rope_scaling(word), getattr(config, "rope_parameters", None)
    if not own or set(own) - PLAIN_ROPE_KEYS or own.get("rope_type", "default") != "default":
        has = "no rotary positions" if not own else "rotary positions that are not the plain kind, or stretched already"
        raise UsageError(f"a model of type {config.model_type} has {has}", "leave --set rope out for this model")
    changed = {**own, "rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "yarn":
        changed["original_max_position_embeddings"] = config.max_position_embeddings
    config.rope_parameters = changed


def find_dynamic_rope(model: Any) -> Any | None:
    """The module whose angles follow the length of a text, where there is one."""
    ropes = (part for part in model.modules() if getattr(part, "rope_type", None) == "dynamic")
    return next(ropes, None)


def compute_rotations(rope: Any, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the first positions of a text of this length."""
    if rope.rope_type != "dynamic":
        cos, sin = rope(like, torch.arange(length, device=like.device)[None])
        return cos[0], sin[0]
    # the module remembers the longest text it has seen; the function behind it knows only this one
    frequencies, scale = ROPE_INIT_FUNCTIONS["dynamic"](rope.config, like.device, seq_len=length)
    turns = torch.outer(torch.arange(length, device=like.device).float(), frequencies)
    turns = torch.cat((turns, turns), dim=1)
    return (turns.cos() * scale).to(like.dtype), (turns.sin() * scale).to(like.dtype)


def run_by_length(rope: Any, rows: Sequence[np.ndarray], run: Callable[[Sequence[np.ndarray]], Tensor]) -> Tensor:
    """Neighbours of one length together, so that no text is turned by the length of another."""
    found = []
    for _, equal in groupby(rows, key=len):
        rope.max_seq_len_cached = 0  # forget what it has seen: it then goes by the length at hand
        found.append(run(list(equal)))
    return torch.cat(found)
