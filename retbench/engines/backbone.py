"""The forward pass of a model: from token ids to the states of a layer.

On a CPU, decoders of the Llama type run in `packed_decoder.py` and encoders of the BERT type in `packed_encoder.py`.
All other models run in transformers: packed without padding if the GPU has a kernel for it (`varlen.py`), else padded
on the right. With right padding a causal model needs no mask, because no token attends to the padding after it; a
bidirectional model gets a mask. States are returned without padding, concatenated, with offsets, so that pooling uses
exact lengths instead of a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retbench.cards.method import Attention
from retbench.cards.model import Dtype, EncoderDtype
from retbench.engines import model_loader, peak_throughput, remote_code, rotary_positions, varlen
from retbench.engines.device import copy_to_device
from retbench.engines.int8_linear import quantize_linear_layers
from retbench.engines.packed_decoder import PackedDecoder, supports_packed_decoding
from retbench.engines.packed_encoder import PackedEncoder, supports_packed_encoding
from retbench.engines.packed_rows import has_fast_attention
from retbench.engines.padding import pad_rows
from retbench.engines.text_config import is_causal
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, InapplicableError, UsageError


class TokenStates(NamedTuple):
    """The states of all tokens; those of row i are `flat[offsets[i]:offsets[i + 1]]`."""

    flat: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True)
class Backbone:
    """A loaded model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    dtype: EncoderDtype
    device: torch.device
    forced_bidirectional: bool = False  # a causal model that attends in both directions
    layer: int | None = None

    def with_method(self, attention: Attention, layer: int | None) -> "Backbone":
        """The same weights with the attention and layer of a method."""
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if layer is not None and not -layers <= layer <= layers:
            raise UsageError(
                f"the method uses layer {layer}, but the model has {layers} layers",
                f"give a layer from -{layers} to {layers}",
            )
        forced = attention == "bidirectional" and (self.causal or self.forced_bidirectional)
        return replace(self, causal=self.causal and not forced, forced_bidirectional=forced, layer=layer)

    @property
    def dimension(self) -> int:
        """Width of a state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def kernel(self) -> str:
        """The attention kernel: in blocks, PyTorch's (rows of equal length, packed or padded), or eager."""
        if find_packed_pass(self.model):
            return "sdpa by length" if has_fast_attention(self.model.dtype) else "blocks"
        return "varlen" if varlen.find_model_kernel(self.model) else str(self.model.config._attn_implementation)

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights; int8 if the linear layers are quantized."""
        return self.dtype if self.dtype == "int8" else str(self.model.dtype).removeprefix("torch.")

    @property
    def flops_per_token(self) -> float | None:
        """FLOP of the linear layers for one token; None if the model has no linear layers."""
        shapes = peak_throughput.count_linear_shapes(self.model)
        return 2.0 * sum(count * rows * columns for (rows, columns), count in shapes.items()) or None

    def peak_throughput(self) -> float | None:
        """Tokens per second if only the matrix products took time; None if there are none or they are in int8."""
        part = self._computed_part
        if self.dtype == "int8" or not peak_throughput.count_linear_shapes(part):
            return None
        return peak_throughput.measure_peak_throughput(part, getattr(torch, self.dtype), self.device)

    @property
    def _computed_part(self) -> torch.nn.Module:
        """What a pass runs of the model: our own stops at the method's layer and leaves out the pooler."""
        model: Any = self.model
        if not find_packed_pass(model):
            return self.model
        layers: torch.nn.ModuleList = model.layers if hasattr(model, "layers") else model.encoder.layer
        return layers if self.layer is None else layers[: self.layer % (len(layers) + 1)]

    @property
    def parameter_count(self) -> int:
        """The number of parameters, without a language-model head."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def compute_states(self, rows: Sequence[np.ndarray], attended: np.ndarray | None = None) -> TokenStates:
        """One forward pass over a batch of token-id rows.

        `attended` is the number of tokens at the start of each row that others read; without it they read all.
        """
        self._check_token_ids(rows)
        lengths = torch.tensor([len(row) for row in rows])
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        if attended is not None:
            return TokenStates(self._compute_padded_states(rows, attended), copy_to_device(offsets, self.device))
        if packed_pass := find_packed_pass(self.model):
            return TokenStates(packed_pass(self.model)(rows, self.causal, self.layer), offsets)
        if varlen.find_model_kernel(self.model) and varlen.fits_attention_window(self.model, rows):
            output = varlen.run_packed(self.model, rows, self.causal, **self._model_options)
            return TokenStates(self._select_layer(output)[0], copy_to_device(offsets, self.device))
        dynamic_rope = rotary_positions.find_dynamic_rope(self.model)
        flat = (
            rotary_positions.run_by_length(dynamic_rope, rows, self._compute_padded_states)
            if dynamic_rope
            else self._compute_padded_states(rows)
        )
        return TokenStates(flat, copy_to_device(offsets, self.device))

    def _check_token_ids(self, rows: Sequence[np.ndarray]) -> None:
        """Raise an error for a token without an embedding; on a GPU it would end the process."""
        embeddings = self.model.config.get_text_config().vocab_size
        largest = int(np.concatenate(rows).max(initial=0)) if rows else 0
        if largest >= embeddings:
            raise DataError(
                f"the tokenizer gives token {largest}, but the model has {embeddings} embeddings",
                "the tokenizer belongs to another model: copy or fetch the folder again",
            )

    def _compute_padded_states(self, rows: Sequence[np.ndarray], attended: np.ndarray | None = None) -> torch.Tensor:
        """The states from transformers, with rows padded on the right. Padding is removed from the result."""
        padded = pad_rows(rows)
        real = padded.token_mask.to(self.device)
        masked = {} if self.causal else {"attention_mask": real.long()}
        if attended is not None:
            masked = {"attention_mask": padded._replace(lengths=torch.from_numpy(attended)).token_mask.long()}
            masked = {name: mask.to(self.device) for name, mask in masked.items()}
        return self._select_layer(self.model(input_ids=padded.ids.to(self.device), **masked, **self._model_options))[
            real
        ]

    @property
    def _model_options(self) -> dict[str, Any]:
        """Options of the model's forward call."""
        options: dict[str, Any] = {"use_cache": False} if self.causal or self.forced_bidirectional else {}
        if self.forced_bidirectional:
            options |= {"is_causal": False}
        if self.layer is not None:
            options |= {"output_hidden_states": True}
        return options

    def _select_layer(self, output: Any) -> torch.Tensor:
        """The states of the selected layer."""
        return torch.as_tensor(output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])


def find_packed_pass(model: Any) -> type[PackedDecoder | PackedEncoder] | None:
    """Our own forward pass for a model on a CPU; None if transformers must run it."""
    if supports_packed_decoding(model):
        return PackedDecoder
    return PackedEncoder if supports_packed_encoding(model) else None


def load_backbone(folder: Path, dtype: EncoderDtype, device: torch.device, rope: str | None = None) -> Backbone:
    """Load the text part of a Hugging Face folder, without language-model head and vision tower.

    `rope` is the RoPE scaling.
    """
    options, trust = model_loader.get_device_map_options(device), remote_code.is_remote_code_trusted()
    weights_dtype: Dtype = "float32" if dtype == "int8" else dtype
    loaded: Any = model_loader.load_text_model(folder, weights_dtype, options, rope, trust)
    model = loaded.to(device).eval()
    if dtype == "int8":
        quantize_linear_layers(model)
    return Backbone(model, load_tokenizer(folder), is_causal(folder), dtype, device)


def load_masked_backbone(folder: Path, dtype: EncoderDtype, device: torch.device, rope: str | None = None) -> Backbone:
    """Load a masked language model with its head, for its logits. It computes in float32, bfloat16 or float16."""
    if dtype == "int8" or rope:
        raise InapplicableError(
            f"a sparse encoder does not support --set {'rope' if rope else 'dtype=int8'}", "leave it out"
        )
    options, trust = model_loader.get_device_map_options(device), remote_code.is_remote_code_trusted()
    loaded: Any = model_loader.load_masked_language_model(folder, dtype, options, trust)
    return Backbone(loaded.to(device).eval(), load_tokenizer(folder), False, dtype, device)
