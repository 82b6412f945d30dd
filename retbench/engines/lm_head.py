"""The language-model head: from a state to the logits of the next token.

A backbone is loaded without it, because dense retrieval does not need it. It is the input embedding if the config ties
the two, else a separate matrix in the weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from retbench.engines.backbone import Backbone
from retbench.engines.model_loader import list_weight_files
from retbench.errors import UsageError

HEAD_NAMES = ("lm_head", "embed_out")  # the names in different architectures; the second is GPT-NeoX


@dataclass(frozen=True)
class LMHead:
    """Logits = weight x state (+ bias), with soft-capping if the model has it (Gemma 2)."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    @torch.inference_mode()
    def compute_logits(self, states: Tensor) -> Tensor:
        """Logits in float32, one row per state."""
        logits = torch.nn.functional.linear(states.to(self.weight.dtype), self.weight, self.bias).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def load_lm_head(folder: Path, backbone: Backbone) -> LMHead:
    """Load the head of a loaded backbone."""
    config = backbone.model.config
    weight = _read_head_tensor(folder, "weight")
    if weight is None:
        if not getattr(config, "tie_word_embeddings", False):
            raise UsageError(
                f"the weights at {folder.name} have no language-model head, but this method needs its logits",
                "use a dense method, or weights with the head",
            )
        weight = backbone.model.get_parameter(_find_input_embedding_name(backbone))
    bias = _read_head_tensor(folder, "bias")
    options: dict[str, Any] = {"device": backbone.device, "dtype": backbone.model.dtype}
    softcap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return LMHead(weight.detach().to(**options), None if bias is None else bias.to(**options), softcap)


def _find_input_embedding_name(backbone: Backbone) -> str:
    embedding = backbone.model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in backbone.model.named_modules() if module is embedding)


def _read_head_tensor(folder: Path, part: str) -> Tensor | None:
    key_endings = tuple(f"{name}.{part}" for name in HEAD_NAMES)
    for file in list_weight_files(folder):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # no dict: it cannot be iterated
                if key.endswith(key_endings):
                    tensor: Tensor = stored.get_tensor(key)
                    return tensor
    return None
