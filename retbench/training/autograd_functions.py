"""The steps of a decoder with gradients written out: layers with their adapters, norm, rotary turn, gate, attention.

torch would make the same numbers, but keep a tensor of every small operation and fill it again on the way back; on a
CPU that takes longer than the matrix products. Here a step keeps its inputs and what is dear to make again. What stands
frozen (weights, norms, biases) is given no gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from retbench.engines.packed_decoder import PackedRows, apply_rms_norm, apply_rotary

MAX_BLOCK_SCORES = 1 << 20  # attention scores held at a time
CHUNK_VALUES = 1 << 16  # values of an elementwise step at a time: more leaves the cache

AttentionBlock = tuple[slice, int, int]  # tokens, rows, tokens a row
OptionalTensors = tuple[Tensor | None, ...]


def lora_linear(states: Tensor, *modules: Any) -> tuple[Tensor, ...]:
    """Layers that read the same states, each with its adapter where it has one."""
    tensors: list[Tensor | None] = []
    for module in modules:
        base = getattr(module, "base_layer", module)
        tensors += [base.weight, base.bias, *_get_adapter(module)]
    found: tuple[Tensor, ...] = _LoraLinearFunction.apply(states, *tensors)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def _get_adapter(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """Both halves, the second one times the scale."""
    if not hasattr(module, "lora_A"):
        return None, None
    (name,) = module.active_adapters
    return module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name]


def rms_norm(states: Tensor, module: Any) -> Tensor:
    """The root-mean-square norm over the last axis, by a frozen module."""
    found: Tensor = _RMSNormFunction.apply(states, module)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def rotate_positions(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions."""
    found: Tensor = _RotaryFunction.apply(heads, cos, sin)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """The inside of the MLP: silu(gate) x up."""
    found: Tensor = _SiluGateFunction.apply(gate, up)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, packed: PackedRows, scale: float) -> Tensor:
    """Causal attention inside each row, [token, head, dimension]."""
    found: Tensor = _CausalAttentionFunction.apply(queries, keys, values, packed, scale)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


class _LoraLinearFunction(Function):
    """x, then weight, bias, and both halves of the adapter, of each layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        kept: list[Tensor | None] = [x]
        for weight, bias, down, up in _group_by_layer(tensors):
            out, low = functional.linear(x, weight, bias), None
            if down is not None:
                low = x @ down.to(x.dtype).T
                out.addmm_(low, up.to(x.dtype).T)
            found.append(out)
            kept += [weight, down, up, low]
        ctx.save_for_backward(*kept)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> OptionalTensors:
        x, *kept = ctx.saved_tensors
        back, found = None, []
        for gradient, (weight, down, up, low) in zip(gradients, _group_by_layer(kept), strict=True):
            back = gradient @ weight if back is None else back.addmm_(gradient, weight)
            found += [None, None, None, None]
            if down is not None:
                lower = gradient @ up.to(x.dtype)
                back.addmm_(lower, down.to(x.dtype))
                found[-2:] = [(lower.T @ x).to(down.dtype), (gradient.T @ low).to(up.dtype)]
        return back, *found


def _group_by_layer(tensors: Any) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(tensors)] * 4, strict=True)


class _RMSNormFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return apply_rms_norm(x, module)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        (x,), back, width = ctx.saved_tensors, torch.empty_like(gradient), gradient.shape[-1]
        weight, epsilon = ctx.module.weight.float(), ctx.module.variance_epsilon
        for part, arriving, place in _iterate_chunks(x, gradient, back):
            wide, slope = part.float(), arriving.float() * weight
            scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            along = (slope * wide).sum(-1, keepdim=True).mul_(scale.square()).div_(width)
            place.copy_(slope.addcmul_(wide, along, value=-1).mul_(scale))
        return back, None


class _RotaryFunction(Function):
    """Back, the same turn the other way."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return apply_rotary(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        cos, sin = ctx.saved_tensors
        return apply_rotary(gradient, cos, -sin), None, None


class _SiluGateFunction(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(up * gradient, gate), functional.silu(gate).mul_(gradient)


class _CausalAttentionFunction(Function):
    """What every token looked at is made again on the way back; the keys that are kept have the scale in them."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, packed: PackedRows, scale: float) -> Tensor:
        found, shared, keys = torch.empty_like(queries), keys.shape[1], keys * scale
        for block in _iterate_blocks(packed, queries.shape[1]):
            q, k, v = (_split_heads(part, block, shared) for part in (queries, keys, values))
            _merge_heads(found, torch.bmm(_attention_probabilities(q, k, block), v), block, shared)
        ctx.save_for_backward(queries, keys, values, found)
        ctx.packed, ctx.scale = packed, scale
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        queries, keys, values, found = ctx.saved_tensors
        to_q, to_k, to_v = (torch.empty_like(part) for part in (queries, keys, values))
        mean, shared = (gradient * found).sum(-1, keepdim=True), keys.shape[1]
        for block in _iterate_blocks(ctx.packed, queries.shape[1]):
            q, k, v, slope, level = (
                _split_heads(part, block, shared) for part in (queries, keys, values, gradient, mean)
            )
            looks = _attention_probabilities(q, k, block)
            _merge_heads(to_v, torch.bmm(looks.transpose(1, 2), slope), block, shared)
            scores = torch.bmm(slope, v.transpose(1, 2)).sub_(level).mul_(looks)
            _merge_heads(to_q, torch.bmm(scores, k), block, shared)
            _merge_heads(to_k, torch.bmm(scores.transpose(1, 2), q), block, shared)
        return to_q, to_k.mul_(ctx.scale), to_v, None, None


def _attention_probabilities(queries: Tensor, keys: Tensor, block: AttentionBlock) -> Tensor:
    """How much each token looks at each one of its row, [row and key head, heads that share the key x token, token]."""
    length = block[2]
    scores = torch.bmm(queries, keys.transpose(1, 2))
    to_come = torch.full((length, length), -torch.inf, dtype=scores.dtype).triu_(1)
    scores.view(len(queries), -1, length, length).add_(to_come)
    return torch.softmax(scores, dim=-1)


def _iterate_blocks(packed: PackedRows, heads: int) -> Iterator[AttentionBlock]:
    """Rows of one length, as many at a time as their scores allow."""
    for first, rows, length in packed.runs:
        at_once = max(1, MAX_BLOCK_SCORES // (heads * length * length))
        for row in range(0, rows, at_once):
            count = min(at_once, rows - row)
            yield slice(first + row * length, first + (row + count) * length), count, length


def _split_heads(heads: Tensor, block: AttentionBlock, shared: int) -> Tensor:
    """A block's [token, head, dimension] as [row and key head, heads that share the key x token, dimension]."""
    span, count, length = block
    split = heads[span].view(count, length, shared, -1, heads.shape[-1]).permute(0, 2, 3, 1, 4)
    return split.reshape(count * shared, -1, heads.shape[-1])


def _merge_heads(heads: Tensor, found: Tensor, block: AttentionBlock, shared: int) -> None:
    """The way back, into its place."""
    span, count, length = block
    split = found.view(count, shared, -1, length, heads.shape[-1]).permute(0, 3, 1, 2, 4)
    heads[span].view(split.shape).copy_(split)


def _iterate_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, CHUNK_VALUES // tensors[0][0].numel())
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
