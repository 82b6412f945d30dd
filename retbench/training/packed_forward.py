"""A training pass on a CPU for decoders of the Llama shape with adapters: what `engines/decoder.py` is to scoring.

Rows lie one after the other, so every product and every norm is over real tokens only. transformers' own layers would
pad, and peft's would copy every input in float32; `slopes.py` has what is called here, with gradients that keep little.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from retbench.engines.packed_decoder import PackedRows, compute_position_rotations, supports_model
from retbench.training import fsdp
from retbench.training.autograd_functions import causal_attention, lora_linear, rms_norm, rotate_positions, silu_gate


def supports_model(model: Any) -> bool:
    """Whether this pass computes the model: adapters that drop nothing, beside frozen weights that are all here."""
    if not hasattr(model, "peft_config") or any(one.lora_dropout for one in model.peft_config.values()):
        return False
    if fsdp.is_sharded(model):
        return False
    return hasattr(model.get_base_model(), "rotary_emb") and supports_model(model.get_base_model())


def compute_states(model: Any, rows: Sequence[np.ndarray]) -> Tensor:
    """The last layer's states of all rows, one after the other, with gradients for the adapters."""
    decoder, packed = model.get_base_model(), PackedRows(rows)
    hidden: Tensor = decoder.embed_tokens(packed.ids)
    cos, sin = compute_position_rotations(decoder.rotary_emb, packed, hidden)
    for layer in decoder.layers:
        hidden = hidden + _run_attention(layer.self_attn, rms_norm(hidden, layer.input_layernorm), packed, cos, sin)
        hidden = hidden + _run_mlp(layer.mlp, rms_norm(hidden, layer.post_attention_layernorm))
    return rms_norm(hidden, decoder.norm)


def _run_attention(module: Any, hidden: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor) -> Tensor:
    flat = lora_linear(hidden, module.q_proj, module.k_proj, module.v_proj)
    queries, keys, values = (part.view(len(hidden), -1, int(module.head_dim)) for part in flat)
    if hasattr(module, "q_norm"):
        queries, keys = rms_norm(queries, module.q_norm), rms_norm(keys, module.k_norm)
    found = causal_attention(
        rotate_positions(queries, cos, sin), rotate_positions(keys, cos, sin), values, packed, module.scaling
    )
    return lora_linear(found.flatten(1), module.o_proj)[0]


def _run_mlp(module: Any, hidden: Tensor) -> Tensor:
    return lora_linear(silu_gate(*lora_linear(hidden, module.gate_proj, module.up_proj)), module.down_proj)[0]
