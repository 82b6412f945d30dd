"""What follows the transformer in the folder of a late-interaction model: layers over the state of each token."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from retbench.cards.published_late_interaction import is_stanford, list_token_layers
from retbench.cards.published_page_retriever import find_page_retriever
from retbench.cards.published_sparse import find_static_folder
from retbench.engines import published_head, weights_cache
from retbench.engines.model_loader import list_weight_files
from retbench.errors import DataError

STANFORD_PROJECTION = "linear.weight"


@dataclass(frozen=True)
class TokenLayers:
    """The layers, in float32."""

    layers: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
    dimension: int | None  # None: the width of a state

    @torch.inference_mode()
    def transform(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the layers to the states of tokens."""
        for layer in self.layers:
            states = layer(states)
        return states


def load_token_layers(folder: Path, device: torch.device) -> TokenLayers:
    """Load the layers of a folder; `published_late_interaction.py` has refused what is not followed."""
    if is_stanford(folder):
        weight = read_weight(folder, STANFORD_PROJECTION).to(device)
        return TokenLayers((lambda states: states @ weight.T,), len(weight))
    if layout := find_page_retriever(folder):
        weight, bias = (read_weight(folder, f"{layout.projection}.{name}").to(device) for name in ("weight", "bias"))
        return TokenLayers((lambda states: states @ weight.T + bias,), len(weight))
    layers: list[Callable[[torch.Tensor], torch.Tensor]] = []
    dimension = None
    for module in list_token_layers(folder):
        if module.kind == "Normalize":
            layers.append(partial(nn.functional.normalize, dim=1))
        else:
            layers.append(published_head.build_dense(folder, module).to(device).eval().requires_grad_(False))
            dimension = int(module.settings["out_features"])
    return TokenLayers(tuple(layers), dimension)


def read_weight(folder: Path, name: str) -> torch.Tensor:
    """Read a weight of the projection, which stands among those of the transformer."""
    for file in list_weight_files(folder):
        with safe_open(file, "pt") as stored:
            if name in stored.keys():  # noqa: SIM118  # no dict: it cannot be iterated
                weight: torch.Tensor = stored.get_tensor(name)
                return weight.float()
    raise DataError(f"{folder} has no {name}, the projection of its vectors", "copy or fetch the folder again")


def load_static_weights(folder: Path) -> torch.Tensor:
    """Load the weights of query tokens of an inference-free sparse model."""
    weights_cache.verify_files(folder)
    part = find_static_folder(folder)
    weights = load_file(part / "model.safetensors")
    if set(weights) != {"weight"} or weights["weight"].dim() != 1:
        raise DataError(f"the weights in {part} are not one number per token", "fetch the folder again")
    return weights["weight"].float()
