"""Rotary positions (RoPE): scaling for `--set rope`, with the parameters of transformers, and angle tables."""

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
    """Set RoPE scaling in a text config. Raises an error unless the model has plain, unscaled RoPE."""
    rope, current = parse_rope_scaling(word), getattr(config, "rope_parameters", None)
    if not current or set(current) - PLAIN_ROPE_KEYS or current.get("rope_type", "default") != "default":
        reason = "no rotary positions" if not current else "rotary positions that are scaled already or of another kind"
        raise UsageError(f"a model of type {config.model_type} has {reason}", "do not use --set rope with this model")
    parameters = {**current, "rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "yarn":
        parameters["original_max_position_embeddings"] = config.max_position_embeddings
    config.rope_parameters = parameters


def find_dynamic_rope(model: Any) -> Any | None:
    """The module with dynamic RoPE (angles depend on the length of the text), or None."""
    ropes = (part for part in model.modules() if getattr(part, "rope_type", None) == "dynamic")
    return next(ropes, None)


def compute_rotations(rope: Any, length: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for all positions of a text of this length."""
    if rope.rope_type != "dynamic":
        cos, sin = rope(reference, torch.arange(length, device=reference.device)[None])
        return cos[0], sin[0]
    # the module caches the longest length it has seen; this function depends only on the given length
    frequencies, scale = ROPE_INIT_FUNCTIONS["dynamic"](rope.config, reference.device, seq_len=length)
    angles = torch.outer(torch.arange(length, device=reference.device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=1)
    return (angles.cos() * scale).to(reference.dtype), (angles.sin() * scale).to(reference.dtype)


def run_by_length(rope: Any, rows: Sequence[np.ndarray], run: Callable[[Sequence[np.ndarray]], Tensor]) -> Tensor:
    """Run consecutive rows of equal length together, so that no row gets the angles of another length."""
    outputs = []
    for _, group in groupby(rows, key=len):
        rope.max_seq_len_cached = 0  # reset the cached length
        outputs.append(run(list(group)))
    return torch.cat(outputs)
