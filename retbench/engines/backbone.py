"""The forward pass: token ids in, a layer's states out.

On a CPU, decoders of the Llama shape go through `decoder.py`; everything else goes through transformers: packed without
padding where a GPU has a kernel for it (`varlen.py`), else padded on the right. A causal model needs no mask then,
because no real token can see the padding behind it; a bidirectional one gets a mask. States come back without padding,
one row after the other, with offsets: whoever pools them carries lengths and never guesses from a mask.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as FILLS_GAPS
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_accelerate_available

from retbench.cards.method import Attention
from retbench.cards.model import Dtype
from retbench.engines import peak_throughput, remote_code, rotary_positions, varlen
from retbench.engines.memory import keep_pages
from retbench.engines.packed_decoder import PackedDecoder, supports_packed_decoding
from retbench.engines.padding import pad_rows
from retbench.errors import UsageError


class States(NamedTuple):
    """The states of row i are `flat[offsets[i]:offsets[i + 1]]`."""

    flat: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True)
class Backbone:
    """A loaded model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    dtype: Dtype
    device: torch.device
    turned: bool = False  # a causal model that is made to attend in both directions
    layer: int | None = None

    def used(self, attention: Attention, layer: int | None) -> "Backbone":
        """The same weights under a method's attention and layer."""
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if layer is not None and not -layers <= layer <= layers:
            raise UsageError(f"layer {layer} of a model with {layers} layers", f"give one from -{layers} to {layers}")
        turned = attention == "bidirectional" and (self.causal or self.turned)
        return replace(self, causal=self.causal and not turned, turned=turned, layer=layer)

    @property
    def dimension(self) -> int:
        """Width of a state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def kernel(self) -> str:
        """What computes attention: products in blocks of our own, PyTorch's kernel (packed, padded), or plain steps."""
        if supports_packed_decoding(self.model):
            return "blocks"
        return "varlen" if varlen.kernel(self.model) else str(self.model.config._attn_implementation)

    def reach(self) -> float | None:
        """Tokens a second that its matrix products alone would allow here; none where they are in no linear layers."""
        if not peak_throughput.shapes(self.model):
            return None
        return peak_throughput.tokens_per_second(self.model, getattr(torch, self.dtype), self.device)

    @property
    def parameters(self) -> int:
        """Weights of the backbone, without a language-model head."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def states(self, rows: Sequence[np.ndarray]) -> States:
        """One forward pass over a batch of token-id rows."""
        lengths = torch.tensor([len(row) for row in rows])
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        if supports_packed_decoding(self.model):
            return States(PackedDecoder(self.model)(rows, self.causal, self.layer), offsets)
        if varlen.kernel(self.model) and varlen.fits(self.model, rows):
            output = varlen.run(self.model, rows, self.causal, **self._wanted)
            return States(self._chosen(output)[0], offsets.to(self.device))
        turning = rotary_positions.find_dynamic_rope(self.model)
        flat = rotary_positions.run_by_length(turning, rows, self._padded) if turning else self._padded(rows)
        return States(flat, offsets.to(self.device))

    def _padded(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """The states of rows through transformers, padded on the right meanwhile."""
        padded = pad_rows(rows)
        real = padded.token_mask.to(self.device)
        masked = {} if self.causal else {"attention_mask": real.long()}
        return self._chosen(self.model(input_ids=padded.ids.to(self.device), **masked, **self._wanted))[real]

    @property
    def _wanted(self) -> dict[str, Any]:
        """What the model must be asked for beside ids."""
        wanted: dict[str, Any] = {"use_cache": False} if self.causal or self.turned else {}
        if self.turned:
            wanted |= {"is_causal": False}
        if self.layer is not None:
            wanted |= {"output_hidden_states": True}
        return wanted

    def _chosen(self, output: Any) -> torch.Tensor:
        """The states of the layer."""
        return torch.as_tensor(output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])


def is_causal(folder: Path) -> bool:
    """What the weights' config says of the direction of attention; kinds that can fill gaps look both ways."""
    config = _config(folder)
    told = config.get("is_causal", True) is not False and not config.get("use_bidirectional_attention")
    fills_gaps = config.get("model_type") in FILLS_GAPS or "AutoModelForMaskedLM" in config.get("auto_map", {})
    return told and not fills_gaps


def attention(folder: Path) -> str | None:
    """What must compute attention: scores with a cap plain steps, which not every version's kernel knows."""
    return "eager" if _config(folder).get("attn_logit_softcapping") else None


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {**config, **config.get("text_config", {})}


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder; code of its own only where it is trusted."""
    with remote_code.explain_refused_code(folder):
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=remote_code.is_remote_code_trusted()
        )
    return loaded


def text_only(folder: Path) -> bool:
    """True for a model of several parts, of which only the one that reads text is loaded."""
    return "text_config" in json.loads((folder / "config.json").read_text())


def load(folder: Path, dtype: Dtype, device: torch.device, rope: str | None = None) -> Backbone:
    """Load the text part of a Hugging Face folder, without its language-model head and without a vision tower.

    `rope` stretches its rotary positions.
    """
    keep_pages()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    trust = remote_code.is_remote_code_trusted()
    with remote_code.explain_refused_code(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    part: Any = MODEL_MAPPING[type(config.get_text_config())] if text_only(folder) else AutoModel
    wanted: dict[str, Any] = {}
    if rope:
        wanted = {"config": config.get_text_config()}
        rotary_positions.apply_rope_scaling(wanted["config"], rope)
    model = part.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention(folder), trust_remote_code=trust,
        use_safetensors=True, **straight_to(device), **wanted,
    )  # fmt: skip
    return Backbone(model.to(device).eval(), tokenizer(folder), is_causal(folder), dtype, device)


def straight_to(device: torch.device) -> dict[str, Any]:
    """What makes transformers read a file into a GPU's memory, not into the host's first; accelerate does it."""
    return {"device_map": {"": device}} if device.type == "cuda" and is_accelerate_available() else {}
