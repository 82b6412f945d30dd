"""A forward pass without padding, for training LoRA adapters of Llama-like decoders on a CPU, with their dropout.

It is the counterpart of `engines/packed_decoder.py` with gradients. Rows are concatenated, so all computation is on
real tokens; transformers' layers would pad, and peft's would copy every input in float32. `autograd_functions.py` has
the operations, whose backward keeps few tensors. On a GPU transformers' layers train on packed rows (`varlen.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from retbench.engines import varlen
from retbench.engines.packed_decoder import compute_position_rotations, supports_packed_decoding
from retbench.engines.packed_rows import PackedRows
from retbench.training import fsdp
from retbench.training.autograd_functions import causal_attention, lora_linear, rms_norm, rotate_positions, silu_gate


def supports_model(model: Any) -> bool:
    """Whether this pass can run the model: with adapters, and weights that are not sharded."""
    if not hasattr(model, "peft_config") or fsdp.is_sharded(model):
        return False
    return hasattr(get_backbone(model), "rotary_emb") and supports_packed_decoding(get_backbone(model))


def get_backbone(model: Any) -> Any:
    """The model of transformers, in which adapters replace layers."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def supports_varlen(model: Any, rows: Sequence[np.ndarray]) -> bool:
    """Whether transformers can train the model on packed rows, by a GPU's kernel; it knows no dropout of attention."""
    backbone = get_backbone(model)
    config = getattr(backbone, "config", None)
    if config is None or fsdp.is_sharded(model):
        return False
    dropout = [getattr(config, name, 0.0) for name in ("attention_dropout", "attention_probs_dropout_prob")]
    return (
        not any(dropout) and bool(varlen.find_model_kernel(backbone)) and varlen.fits_attention_window(backbone, rows)
    )


def compute_states(model: Any, rows: Sequence[np.ndarray]) -> Tensor:
    """The last layer's states of all rows, concatenated, with gradients for the adapters."""
    decoder, packed = get_backbone(model), PackedRows(rows)
    hidden: Tensor = decoder.embed_tokens(packed.ids)
    cos, sin = compute_position_rotations(decoder.rotary_emb, packed, hidden)
    for layer in decoder.layers:
        hidden = hidden + _run_attention(layer.self_attn, rms_norm(hidden, layer.input_layernorm), packed, cos, sin)
        hidden = hidden + _run_mlp(layer.mlp, rms_norm(hidden, layer.post_attention_layernorm), packed)
    return rms_norm(hidden, decoder.norm)


def _run_attention(module: Any, hidden: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor) -> Tensor:
    flat = lora_linear(hidden, packed, module.q_proj, module.k_proj, module.v_proj)
    queries, keys, values = (part.view(len(hidden), -1, int(module.head_dim)) for part in flat)
    if hasattr(module, "q_norm"):
        queries, keys = rms_norm(queries, module.q_norm), rms_norm(keys, module.k_norm)
    queries, keys = rotate_positions(queries, cos, sin), rotate_positions(keys, cos, sin)
    states = causal_attention(queries, keys, values, packed, module.scaling)
    return lora_linear(states.flatten(1), packed, module.o_proj)[0]


def _run_mlp(module: Any, hidden: Tensor, packed: PackedRows) -> Tensor:
    gated = silu_gate(*lora_linear(hidden, packed, module.gate_proj, module.up_proj))
    return lora_linear(gated, packed, module.down_proj)[0]
