"""Linear layers in int8 for `--set dtype=int8` on a CPU: one scale per token and one per output, products in oneDNN.

A token's scale depends on nothing but its own state, so its vector does not depend on the other texts of a batch. Sums
of integers are exact, so batch sizes, threads and kernels give the same products. CPUs with AVX2 and no VNNI add two
products in 16 bits; so weights have 7 bits (-63 to 63), because 2 * 255 * 63 < 2**15, and all CPUs compute the same.
States are stored with an offset, as unsigned bytes: oneDNN has no fast product of signed bytes on most CPUs.
Everything between the linear layers stays in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

from retbench.errors import UsageError

MAX_STATE, STATE_OFFSET, MAX_WEIGHT = 127, 128, 63
SMALLEST_SCALE = 1e-30  # of a row of zeros, which would divide by zero
BLOCK_VALUES = 1 << 18  # states quantized at a time: more do not fit into the cache


class Int8Linear(nn.Module):
    """A linear layer with packed int8 weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        weight = layer.weight.detach().float()
        self.scales = weight.abs().amax(dim=1).div_(MAX_WEIGHT).clamp_min_(SMALLEST_SCALE)
        self.zero_points = torch.zeros(self.out_features, dtype=torch.int64)
        quantized = weight.div(self.scales[:, None]).round_().to(torch.int8)
        self.packed_weight = torch.ops.onednn.qlinear_prepack(quantized, None)

    def forward(self, states: Tensor) -> Tensor:
        """The layer's output, in float32."""
        rows = states.reshape(-1, self.in_features)
        out = torch.empty(len(rows), self.out_features)
        size = max(1, BLOCK_VALUES // max(self.in_features, self.out_features))
        for start in range(0, len(rows), size):
            quantized, scales = quantize_rows(rows[start : start + size])
            product, target = self._multiply(quantized), out[start : start + size]
            if self.bias is None:
                torch.mul(product, scales, out=target)
            else:
                torch.addcmul(self.bias, product, scales, out=target)
        return out.view(*states.shape[:-1], self.out_features)

    def _multiply(self, quantized: Tensor) -> Tensor:
        """The product with the weights, scaled per output, in float32."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, STATE_OFFSET, self.packed_weight, self.scales, self.zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unsigned bytes and the scale of each row."""
    largest = torch.maximum(rows.amax(dim=-1, keepdim=True), rows.amin(dim=-1, keepdim=True).neg_())
    scales = largest.div_(MAX_STATE).clamp_min_(SMALLEST_SCALE)
    offset = torch.tensor(float(STATE_OFFSET))
    return torch.addcmul(offset, rows, scales.reciprocal()).round_().to(torch.uint8), scales


def quantize_linear_layers(model: Any) -> None:
    """Replace all linear layers of a float32 model."""
    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    if not layers:
        raise UsageError(
            f"dtype int8: {type(model).__name__} has no linear layers that could be quantized",
            "use another --set dtype (retbench show model NAME prints the usual one)",
        )
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(layer))
