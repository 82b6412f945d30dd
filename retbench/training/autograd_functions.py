"""The operations of a decoder with hand-written gradients: linear with LoRA, norm, rotary positions, gate, attention.

torch's autograd gives the same numbers, but keeps a tensor of every small operation; on a CPU that takes longer than
the matrix products. Here an operation keeps its inputs and what is expensive to compute again. Frozen weights, norms
and biases get no gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from retbench.engines.packed_decoder import apply_rms_norm, apply_rotary
from retbench.engines.packed_rows import PackedRows
from retbench.training.row_dropout import RowDropout

MAX_BLOCK_SCORES = 1 << 20  # attention scores in memory at a time
CHUNK_VALUES = 1 << 16  # values of an elementwise operation at a time: more do not fit the CPU cache

AttentionBlock = tuple[slice, int, int]  # token span, number of rows, tokens per row
OptionalTensors = tuple[Tensor | None, ...]


def lora_linear(states: Tensor, packed: PackedRows, *modules: Any) -> tuple[Tensor, ...]:
    """Linear layers of the same states, each with its LoRA adapter if it has one, and the dropout of the adapter."""
    tensors: list[Tensor | None] = []
    for module in modules:
        base = getattr(module, "base_layer", module)
        tensors += [base.weight, base.bias, *_get_adapter(module, packed)]
    outputs: tuple[Tensor, ...] = _LoraLinearFunction.apply(states, *tensors)  # type: ignore[no-untyped-call]  # untyped in torch
    return outputs


def _get_adapter(module: Any, packed: PackedRows) -> OptionalTensors:
    """The two matrices of a LoRA adapter, the second one scaled, and a mask of the inputs that it drops."""
    if not hasattr(module, "lora_A"):
        return None, None, None
    (name,) = module.active_adapters
    down, scale, dropout = module.lora_A[name].weight, module.scaling[name], module.lora_dropout[name]
    mask = dropout.draw_packed_mask(packed.lengths, down.shape[1]) if isinstance(dropout, RowDropout) else None
    return down, module.lora_B[name].weight * (scale if mask is None else scale / (1 - dropout.p)), mask


def rms_norm(states: Tensor, module: Any) -> Tensor:
    """The root-mean-square norm over the last axis, with the frozen weight of a module."""
    output: Tensor = _RMSNormFunction.apply(states, module)  # type: ignore[no-untyped-call]  # untyped in torch
    return output


def rotate_positions(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions."""
    rotated: Tensor = _RotaryFunction.apply(heads, cos, sin)  # type: ignore[no-untyped-call]  # untyped in torch
    return rotated


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """The gate of the MLP: silu(gate) x up."""
    output: Tensor = _SiluGateFunction.apply(gate, up)  # type: ignore[no-untyped-call]  # untyped in torch
    return output


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, packed: PackedRows, scale: float) -> Tensor:
    """Causal attention within each row, [token, head, dimension]."""
    output: Tensor = _CausalAttentionFunction.apply(queries, keys, values, packed, scale)  # type: ignore[no-untyped-call]  # untyped in torch
    return output


class _LoraLinearFunction(Function):
    """Takes x, then weight, bias, the two adapter matrices and the mask of each layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        saved: list[Tensor | None] = [x]
        for weight, bias, down, up, mask in _group_by_layer(tensors):
            out, low = functional.linear(x, weight, bias), None
            if down is not None:
                low = _drop(x, mask) @ down.to(x.dtype).T
                out.addmm_(low, up.to(x.dtype).T)
            outputs.append(out)
            saved += [weight, down, up, low, mask]
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> OptionalTensors:
        x, *saved = ctx.saved_tensors
        input_gradient, parameter_gradients = None, []
        for gradient, (weight, down, up, low, mask) in zip(gradients, _group_by_layer(saved), strict=True):
            input_gradient = gradient @ weight if input_gradient is None else input_gradient.addmm_(gradient, weight)
            down_gradient = up_gradient = None
            if down is not None:
                low_gradient = gradient @ up.to(x.dtype)
                if mask is None:
                    input_gradient.addmm_(low_gradient, down.to(x.dtype))
                else:
                    input_gradient.add_(_drop(low_gradient @ down.to(x.dtype), mask))
                down_gradient = (low_gradient.T @ _drop(x, mask)).to(down.dtype)
                up_gradient = (gradient.T @ low).to(up.dtype)
            parameter_gradients += [None, None, down_gradient, up_gradient, None]
        return input_gradient, *parameter_gradients


def _drop(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else states.masked_fill(mask, 0.0)


def _group_by_layer(tensors: Any) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(tensors)] * 5, strict=True)


class _RMSNormFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return apply_rms_norm(x, module)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        (x,), input_gradient, width = ctx.saved_tensors, torch.empty_like(gradient), gradient.shape[-1]
        weight, epsilon = ctx.module.weight.float(), ctx.module.variance_epsilon
        for part, output_gradient, destination in _iterate_chunks(x, gradient, input_gradient):
            states, scaled_gradient = part.float(), output_gradient.float() * weight
            scale = states.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            projection = (scaled_gradient * states).sum(-1, keepdim=True).mul_(scale.square()).div_(width)
            destination.copy_(scaled_gradient.addcmul_(states, projection, value=-1).mul_(scale))
        return input_gradient, None


class _RotaryFunction(Function):
    """Its backward is the rotation by the opposite angle."""

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
    """The backward computes the attention probabilities again; the saved keys include the scale."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, packed: PackedRows, scale: float) -> Tensor:
        output, key_heads, keys = torch.empty_like(queries), keys.shape[1], keys * scale
        for block in _iterate_blocks(packed, queries.shape[1]):
            q, k, v = (_split_heads(part, block, key_heads) for part in (queries, keys, values))
            _merge_heads(output, torch.bmm(_attention_probabilities(q, k, block), v), block, key_heads)
        ctx.save_for_backward(queries, keys, values, output)
        ctx.packed, ctx.scale = packed, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> OptionalTensors:
        queries, keys, values, output = ctx.saved_tensors
        query_gradient, key_gradient, value_gradient = (torch.empty_like(part) for part in (queries, keys, values))
        row_means, key_heads = (gradient * output).sum(-1, keepdim=True), keys.shape[1]
        for block in _iterate_blocks(ctx.packed, queries.shape[1]):
            q, k, v, output_gradient, row_mean = (
                _split_heads(part, block, key_heads) for part in (queries, keys, values, gradient, row_means)
            )
            probabilities = _attention_probabilities(q, k, block)
            _merge_heads(value_gradient, torch.bmm(probabilities.transpose(1, 2), output_gradient), block, key_heads)
            scores = torch.bmm(output_gradient, v.transpose(1, 2)).sub_(row_mean).mul_(probabilities)
            _merge_heads(query_gradient, torch.bmm(scores, k), block, key_heads)
            _merge_heads(key_gradient, torch.bmm(scores.transpose(1, 2), q), block, key_heads)
        return query_gradient, key_gradient.mul_(ctx.scale), value_gradient, None, None


def _attention_probabilities(queries: Tensor, keys: Tensor, block: AttentionBlock) -> Tensor:
    """Attention probabilities within each row, [row and key head, heads that share the key x token, token]."""
    length = block[2]
    scores = torch.bmm(queries, keys.transpose(1, 2))
    future_mask = torch.full((length, length), -torch.inf, dtype=scores.dtype).triu_(1)
    scores.view(len(queries), -1, length, length).add_(future_mask)
    return torch.softmax(scores, dim=-1)


def _iterate_blocks(packed: PackedRows, heads: int) -> Iterator[AttentionBlock]:
    """Rows of equal length, as many at a time as MAX_BLOCK_SCORES allows."""
    for first, rows, length in packed.runs:
        at_once = max(1, MAX_BLOCK_SCORES // (heads * length * length))
        for row in range(0, rows, at_once):
            count = min(at_once, rows - row)
            yield slice(first + row * length, first + (row + count) * length), count, length


def _split_heads(heads: Tensor, block: AttentionBlock, key_heads: int) -> Tensor:
    """A block's [token, head, dimension] as [row and key head, heads that share the key x token, dimension]."""
    span, count, length = block
    split = heads[span].view(count, length, key_heads, -1, heads.shape[-1]).permute(0, 2, 3, 1, 4)
    return split.reshape(count * key_heads, -1, heads.shape[-1])


def _merge_heads(heads: Tensor, split_heads: Tensor, block: AttentionBlock, key_heads: int) -> None:
    """The inverse of `_split_heads`: write a block's split to their positions in `heads`."""
    span, count, length = block
    values = split_heads.view(count, key_heads, -1, length, heads.shape[-1]).permute(0, 3, 1, 2, 4)
    heads[span].view(values.shape).copy_(values)


def _iterate_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, CHUNK_VALUES // tensors[0][0].numel())
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
