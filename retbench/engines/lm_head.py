"""The language-model head alone: from a state to the logits of the next token.

A backbone is loaded without it, because dense retrieval never asks. It is the input embedding where the config ties the
two, else a matrix of its own among the weights.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from retbench.engines.backbone import Backbone
from retbench.errors import UsageError

HEAD_NAMES = ("lm_head", "embed_out")  # what architectures call it; the second is GPT-NeoX


@dataclass(frozen=True)
class LMHead:
    """Logits = weight x state (+ bias), bent by a cap where the model has one (Gemma 2)."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    @torch.inference_mode()
    def compute_logits(self, states: Tensor) -> Tensor:
        """One row of logits, in float32, for each row of states."""
        found = torch.nn.functional.linear(states.to(self.weight.dtype), self.weight, self.bias).float()
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


def load_lm_head(folder: Path, backbone: Backbone) -> LMHead:
    """The head that belongs to a loaded backbone."""
    config = backbone.model.config
    weight = _read_head_tensor(folder, "weight")
    if weight is None:
        if not (config.tie_word_embeddings or config.get_text_config().tie_word_embeddings):
            raise UsageError(
                f"the weights at {folder.name} have no language-model head, and this method needs its logits",
                "use a dense method, or weights of the whole language model",
            )
        weight = backbone.model.get_parameter(_find_input_embedding_name(backbone))
    bias = _read_head_tensor(folder, "bias")
    place = {"device": backbone.device, "dtype": getattr(torch, backbone.dtype)}
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return LMHead(weight.detach().to(**place), None if bias is None else bias.to(**place), cap)


def _find_input_embedding_name(backbone: Backbone) -> str:
    embedding = backbone.model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in backbone.model.named_modules() if module is embedding)


def _read_head_tensor(folder: Path, part: str) -> Tensor | None:
    wanted = tuple(f"{name}.{part}" for name in HEAD_NAMES)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # not a dict: it has no iterator
                if key.endswith(wanted):
                    tensor: Tensor = stored.get_tensor(key)
                    return tensor
    return None
