"""What follows the transformer in a sentence-transformers folder: one pooling, then Dense, LayerNorm and Normalize.

A head that we cannot compute exactly was refused before (`check_published_head.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from retbench.cards.method import Pooling
from retbench.cards.published_method import POOLINGS
from retbench.cards.published_modules import PublishedModule, read_modules
from retbench.engines.check_published_head import WEIGHTS_FILE, check_head
from retbench.errors import DataError

LayerBuilder = Callable[[Path, PublishedModule], nn.Module]


@dataclass(frozen=True)
class PublishedHead:
    """The pooling and the layers after it, in float32."""

    pooling: Pooling
    layers: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
    dimension: int | None  # None: the width of a state

    def transform(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply the layers to pooled states."""
        for layer in self.layers:
            pooled = layer(pooled)
        return pooled


def load_head(folder: Path, device: torch.device) -> PublishedHead:
    """Load the modules after the transformer."""
    check_head(folder, "transformers")
    modules = read_modules(folder)
    builders: dict[str, LayerBuilder] = {"Dense": build_dense, "LayerNorm": _build_layer_norm}
    layers: list[Callable[[torch.Tensor], torch.Tensor]] = []
    dimension = None
    for module in modules:
        if module.kind == "Normalize":
            layers.append(partial(nn.functional.normalize, dim=1))
        if module.kind in builders:
            layers.append(builders[module.kind](folder, module).to(device).eval().requires_grad_(False))
        if module.kind == "Dense":
            dimension = _read_size(folder, module, "out_features")
    (mode,) = (mode for module in modules for mode in module.get_pooling_modes())
    return PublishedHead(POOLINGS[mode], tuple(layers), dimension)


class DenseLayer(nn.Module):
    """A linear layer, an activation, and optionally the input added to the result."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, use_residual: bool) -> None:
        super().__init__()
        self.linear, self.activation, self.use_residual = linear, activation, use_residual
        if use_residual and linear.in_features != linear.out_features:
            self.residual = nn.Linear(linear.in_features, linear.out_features, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the layer to the last dimension."""
        result: torch.Tensor = self.activation(self.linear(states))
        if not self.use_residual:
            return result
        return result + (self.residual(states) if hasattr(self, "residual") else states)


def build_dense(folder: Path, module: PublishedModule) -> DenseLayer:
    """Build a Dense module with its weights."""
    settings = module.settings
    inputs, outputs = _read_size(folder, module, "in_features"), _read_size(folder, module, "out_features")
    activation = _build_activation(folder, str(settings.get("activation_function", "torch.nn.Tanh")))
    linear = nn.Linear(inputs, outputs, bias=bool(settings.get("bias", True)))
    layer = DenseLayer(linear, activation, bool(settings.get("use_residual")))
    _load_weights(folder / module.path, layer, "")
    return layer


def _read_size(folder: Path, module: PublishedModule, name: str) -> int:
    size = module.settings.get(name)
    if not isinstance(size, int) or size < 1:
        raise DataError(f"{folder / module.path / 'config.json'}: {name} is {size}", "fetch the folder again")
    return size


def _build_activation(folder: Path, name: str) -> nn.Module:
    activation: Any = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise DataError(f"{folder} has the activation {name}, which is not one of torch.nn", "use another model")
    built: nn.Module = activation()
    return built


def _build_layer_norm(folder: Path, module: PublishedModule) -> nn.Module:
    norm = nn.LayerNorm(_read_size(folder, module, "dimension"))
    _load_weights(folder / module.path, norm, "norm.")
    return norm


def _load_weights(folder: Path, layer: nn.Module, prefix: str) -> None:
    """Load all weights of a layer; names and shapes must be exactly those of the file."""
    stored = {name.removeprefix(prefix): weight.float() for name, weight in load_file(folder / WEIGHTS_FILE).items()}
    expected = {name: weight.shape for name, weight in layer.state_dict().items()}
    if {name: weight.shape for name, weight in stored.items()} != expected:
        raise DataError(
            f"the weights in {folder} are {_format_shapes(stored.items())}, not "
            f"{_format_shapes(layer.state_dict().items())}",
            "fetch the folder again, or use another model",
        )
    layer.load_state_dict(stored)


def _format_shapes(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, weight.shape))}" for name, weight in sorted(weights))
