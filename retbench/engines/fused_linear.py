"""Linear layers on a CPU in one kernel with what follows them: the bias, the activation, the sum with the residual.

oneDNN does all that while a part of the product is still in the cache. In torch they are passes of their own over
memory; an exact GELU takes as long as the product before it. In float32 the product alone is a little faster in torch's
other library, MKL, so only a GELU is worth oneDNN there. Other layers (LoRA, int8) and activations run as they are.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# transformers' names of activations: oneDNN's name, its algorithm, and the dtypes in which the fused kernel is faster
FUSED_ACTIVATIONS = {
    "gelu": ("gelu", "none", (torch.bfloat16, torch.float32)),
    "relu": ("relu", "", (torch.bfloat16,)),
    "silu": ("swish", "", (torch.bfloat16,)),
}


@cache
def has_fused_kernel(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # untyped in torch
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def apply_linear(layer: Any, states: Tensor) -> Tensor:
    """The layer's output."""
    if not _is_fusible(layer, torch.bfloat16):
        return torch.as_tensor(layer(states))
    return torch.as_tensor(torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], ""))


def apply_and_activate(layer: Any, states: Tensor, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The layer's output after the activation; `name` is that of the activation in transformers."""
    fused, algorithm, dtypes = FUSED_ACTIVATIONS.get(name, ("", "", ()))
    if not _is_fusible(layer, *dtypes):
        return activation(layer(states))
    return torch.as_tensor(torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, fused, [], algorithm))


def apply_and_add(layer: Any, states: Tensor, residual: Tensor) -> Tensor:
    """The sum of the residual, which may be overwritten, and the layer's output."""
    if not _is_fusible(layer, torch.bfloat16):
        return residual.add_(layer(states))
    return torch.as_tensor(torch.ops.mkldnn._linear_pointwise.binary(states, residual, layer.weight, layer.bias, "add"))


def _is_fusible(layer: Any, *dtypes: torch.dtype) -> bool:
    """Whether the layer is plain, since a subclass may compute something else, and of one of these types."""
    return type(layer) is nn.Linear and layer.weight.dtype in dtypes and has_fused_kernel(layer.weight.dtype)
