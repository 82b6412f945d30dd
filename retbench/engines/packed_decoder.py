"""Our own forward pass on a CPU for decoders of the Llama type: without padding, with little overhead.

`packed_rows.py` concatenates the rows, computes attention and divides the work among threads. The modules of the model
are called, so trained or adapted weights are used. The differences between model families (biases, head norms,
grouped-query attention) are handled by these modules too.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retbench.engines.fused_linear import apply_and_activate, apply_and_add
from retbench.engines.packed_rows import PackedRows, attend, run_in_threads, split_into_blocks
from retbench.engines.rotary_positions import compute_rotations

SUPPORTED_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
SUPPORTED_ROPES = {"default", "linear", "llama3", "yarn", "dynamic"}

NORM_BLOCK_VECTORS = 256  # vectors normalized at a time


def supports_packed_decoding(model: Any) -> bool:
    """Whether this forward pass supports everything the model uses."""
    config = model.config
    if config.model_type not in SUPPORTED_FAMILIES or model.device.type != "cpu" or config.hidden_act != "silu":
        return False
    has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    has_window = config.model_type == "mistral" and config.sliding_window is not None
    rotates_whole_head = 2 * len(model.rotary_emb.inv_freq) == model.layers[0].self_attn.head_dim
    return (
        rotates_whole_head
        and not has_sliding_layers
        and not has_window
        and model.rotary_emb.rope_type in SUPPORTED_ROPES
    )


class DecoderLayer:
    """One layer of the decoder."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.dimension = int(module.self_attn.head_dim)
        self.scale = float(module.self_attn.scaling)

    def __call__(self, states: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor, causal: bool) -> Tensor:
        """The states after this layer; the given ones are overwritten."""
        module, mlp = self.module, self.module.mlp
        attended = self._compute_attention(apply_rms_norm(states, module.input_layernorm), packed, cos, sin, causal)
        states = apply_and_add(module.self_attn.o_proj, attended, states)
        normalized = apply_rms_norm(states, module.post_attention_layernorm)
        for block in split_into_blocks(len(states), mlp.intermediate_size):
            gate = apply_and_activate(mlp.gate_proj, normalized[block], "silu", functional.silu)
            gate.mul_(mlp.up_proj(normalized[block]))
            states[block] = apply_and_add(mlp.down_proj, gate, states[block])
        return states

    def _compute_attention(self, states: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor, causal: bool) -> Tensor:
        module, heads = self.module.self_attn, (len(states), -1, self.dimension)
        queries, keys = module.q_proj(states).view(heads), module.k_proj(states).view(heads)
        if hasattr(module, "q_norm"):
            queries, keys = apply_rms_norm(queries, module.q_norm), apply_rms_norm(keys, module.k_norm)
        queries, keys = apply_rotary(queries, cos, sin), apply_rotary(keys, cos, sin)
        return attend(packed, queries, keys, module.v_proj(states).view(heads), scale=self.scale, causal=causal)


class PackedDecoder:
    """A whole decoder without its language-model head."""

    def __init__(self, model: Any) -> None:
        self.embedding, self.norm, self.rope = model.embed_tokens, model.norm, model.rotary_emb
        self.layers = [DecoderLayer(module) for module in model.layers]

    def __call__(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None = None) -> Tensor:
        """The states of all concatenated rows: after the last norm, or after `layer` layers."""
        return run_in_threads(partial(self._forward, causal=causal, layer=layer), rows)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None) -> Tensor:
        packed, last = PackedRows(rows), len(self.layers)
        states = self.embedding(packed.ids)
        cos, sin = compute_position_rotations(self.rope, packed, states)
        stop = last if layer is None else layer % (last + 1)
        for step in self.layers[:stop]:
            states = step(states, packed, cos, sin, causal)
        return apply_rms_norm(states, self.norm) if stop == last else states


def compute_position_rotations(rope: Any, packed: PackedRows, states: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angle of each token; the first half of the sine is negated."""
    positions = packed.positions
    if rope.rope_type == "dynamic":  # the angles depend on the length of the text: one table per length
        tables = [compute_rotations(rope, length, states) for _, rows, length in packed.runs for _ in range(rows)]
        cos, sin = (torch.cat(side) for side in zip(*tables, strict=True))
        positions = torch.arange(len(positions))
    else:
        cos, sin = compute_rotations(rope, int(positions.max()) + 1, states)
    sin = torch.cat((-sin[:, : sin.shape[1] // 2], sin[:, sin.shape[1] // 2 :]), dim=1)
    return cos[positions][:, None], sin[positions][:, None]


def apply_rms_norm(states: Tensor, norm: Any) -> Tensor:
    """RMS norm over the last axis, in blocks of rows whose float32 copy fits into the cache."""
    out, weight = torch.empty_like(states), norm.weight.float()
    width = states.shape[-1]
    rows = max(1, NORM_BLOCK_VECTORS * width // max(1, states[0].numel()))
    for part, target in zip(torch.split(states, rows), torch.split(out, rows), strict=True):
        part32 = part.float()
        squared = torch.linalg.vector_norm(part32, dim=-1, keepdim=True).square_()
        scale = squared.div_(width).add_(norm.variance_epsilon).rsqrt_()
        target.copy_((part32 * scale).mul_(weight))
    return out


def apply_rotary(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to all heads."""
    return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, dims=-1), sin)
