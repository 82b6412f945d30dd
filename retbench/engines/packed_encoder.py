"""Our own forward pass on a CPU for encoders of the BERT type: without padding, one group of rows per thread.

`packed_rows.py` concatenates the rows, computes attention and divides the work among threads. The families differ in
the names of their modules and in the numbers of their positions; both are data here (`FAMILIES`). The modules of the
model are called, so trained, adapted or quantized weights are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retbench.engines.fused_linear import apply_and_activate, apply_and_add, apply_linear
from retbench.engines.packed_rows import PackedRows, attend, run_in_threads, split_into_blocks


@dataclass(frozen=True)
class EncoderFamily:
    """The names of a layer's modules, and how positions are numbered.

    With `skips_padding` the first token has the position after that of the padding token, and a padding token inside
    a text has the padding's own position.
    """

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    skips_padding: bool = False


ROBERTA = EncoderFamily(skips_padding=True)
FAMILIES = {
    "bert": EncoderFamily(),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": EncoderFamily(
        "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
        skips_padding=True,
    ),
}  # fmt: skip


def supports_packed_encoding(model: Any) -> bool:
    """Whether this forward pass supports everything the model uses."""
    config = model.config
    return (
        config.model_type in FAMILIES
        and type(model).__module__.startswith("transformers.models.")  # not a model's own code under a known name
        and model.base_model is model  # without a head
        and model.device.type == "cpu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )


class EncoderLayer:
    """One layer of the encoder."""

    def __init__(self, module: Any, family: EncoderFamily, config: Any) -> None:
        names = (family.query, family.key, family.value, family.attention_output, family.attention_norm)
        self.query, self.key, self.value, self.attention_output, self.attention_norm = map(module.get_submodule, names)
        self.intermediate, self.output, self.activation = module.intermediate, module.output, config.hidden_act
        self.head_dimension = config.hidden_size // config.num_attention_heads

    def __call__(self, states: Tensor, packed: PackedRows, bias: Tensor | None) -> Tensor:
        """The states after this layer; the given ones are overwritten."""
        heads, scale = (len(states), -1, self.head_dimension), self.head_dimension**-0.5
        queries, keys, values = (
            apply_linear(layer, states).view(heads) for layer in (self.query, self.key, self.value)
        )
        attended = attend(packed, queries, keys, values, scale=scale, causal=False, bias=bias)
        states = self.attention_norm(apply_and_add(self.attention_output, attended, states))
        widen, activate = self.intermediate.dense, self.intermediate.intermediate_act_fn
        for block in split_into_blocks(len(states), widen.out_features):
            hidden = apply_and_activate(widen, states[block], self.activation, activate)
            states[block] = apply_and_add(self.output.dense, hidden, states[block])
        normalized: Tensor = self.output.LayerNorm(states)
        return normalized


class PackedEncoder:
    """A whole encoder without its pooler."""

    def __init__(self, model: Any) -> None:
        self.embeddings, self.encoder = model.embeddings, model.encoder
        self.family = FAMILIES[model.config.model_type]
        self.layers = [EncoderLayer(module, self.family, model.config) for module in model.encoder.layer]

    def __call__(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None = None) -> Tensor:
        """The states of all concatenated rows after the last layer, or after `layer` layers."""
        if causal:
            raise ValueError("an encoder attends in both directions")
        return run_in_threads(partial(self._forward, layer=layer), rows)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[np.ndarray], layer: int | None) -> Tensor:
        packed, last = PackedRows(rows), len(self.layers)
        states, bias = self._embed(rows, packed), self._compute_position_bias(packed)
        for step in self.layers[: last if layer is None else layer % (last + 1)]:
            states = step(states, packed, bias)
        return states

    def _embed(self, rows: Sequence[np.ndarray], packed: PackedRows) -> Tensor:
        """The sum of the embeddings of word, type and position, normalized."""
        positions = packed.positions
        if self.family.skips_padding:
            positions = number_positions_after_padding(rows, int(self.embeddings.padding_idx))
        states = self.embeddings.word_embeddings(packed.ids) + self.embeddings.position_embeddings(positions)
        if hasattr(self.embeddings, "token_type_embeddings"):
            states += self.embeddings.token_type_embeddings.weight[0]
        normalized: Tensor = self.embeddings.LayerNorm(states)
        return normalized

    def _compute_position_bias(self, packed: PackedRows) -> Tensor | None:
        """MPNet's bias of each pair of positions (heads, tokens, tokens); it depends only on their distance."""
        if not isinstance(getattr(self.encoder, "relative_attention_bias", None), nn.Embedding):
            return None
        longest = max(length for _, _, length in packed.runs)
        bias: Tensor = self.encoder.compute_position_bias(torch.empty(1, longest))[0]
        return bias


def number_positions_after_padding(rows: Sequence[np.ndarray], padding: int) -> Tensor:
    """RoBERTa's positions: tokens are counted from the padding token's id; padding tokens are not counted."""
    real = [row != padding for row in rows]
    return torch.from_numpy(np.concatenate([np.cumsum(mask) * mask for mask in real]).astype(np.int64) + padding)
