"""Our own forward pass on a CPU for decoders of the Llama type: without padding, with little overhead.

The rows are concatenated, so all products are over real tokens. Attention runs in blocks of queries that fit into the
cache, and skips later keys if it is causal. Groups of rows run in separate threads, so no thread waits inside a layer.
The modules of the model are called, so trained or adapted weights are used. The differences between model families
(biases, head norms, grouped-query attention) are handled by these modules too.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retbench.engines.rotary_positions import compute_rotations

SUPPORTED_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
SUPPORTED_ROPES = {"default", "linear", "llama3", "yarn", "dynamic"}

MLP_BLOCK_VALUES = 1 << 22  # MLP activations per block: more do not fit into the cache, fewer make products small
QUERY_BLOCK = 128
NORM_BLOCK_VECTORS = 256  # vectors normalized at a time
MAX_SCORES = 1 << 20  # attention scores in memory at a time
MAX_WORKERS = 8  # more threads would wait for the GIL


def supports_packed_decoding(model: Any) -> bool:
    """Whether this forward pass supports everything the model uses."""
    config = model.config
    if config.model_type not in SUPPORTED_FAMILIES or model.device.type != "cpu" or config.hidden_act != "silu":
        return False
    has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    has_window = config.model_type == "mistral" and config.sliding_window is not None
    rotates_whole_head = 2 * len(model.rotary_emb.inv_freq) == model.layers[0].self_attn.head_dim
    return (
        rotates_whole_head
        and not has_sliding_layers
        and not has_window
        and model.rotary_emb.rope_type in SUPPORTED_ROPES
    )


class PackedRows:
    """Concatenated rows, and the runs of rows of equal length: (first token, rows, tokens per row)."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        self.positions = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows]))
        self.runs: list[tuple[int, int, int]] = []
        start = 0
        for row in rows:
            if self.runs and self.runs[-1][2] == len(row):
                first, count, length = self.runs[-1]
                self.runs[-1] = (first, count + 1, length)
            else:
                self.runs.append((start, 1, len(row)))
            start += len(row)


class DecoderLayer:
    """One layer of the decoder."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.dimension = int(module.self_attn.head_dim)
        self.queries_per_key = int(module.self_attn.num_key_value_groups)
        self.scale = float(module.self_attn.scaling)

    def __call__(self, states: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor, causal: bool) -> None:
        """Add attention and MLP of this layer to the states, in place."""
        module, mlp = self.module, self.module.mlp
        attended = self._compute_attention(apply_rms_norm(states, module.input_layernorm), packed, cos, sin, causal)
        states += module.self_attn.o_proj(attended)
        normalized = apply_rms_norm(states, module.post_attention_layernorm)
        at_once = max(1, MLP_BLOCK_VALUES // mlp.intermediate_size)
        for start in range(0, len(states), at_once):
            block = slice(start, start + at_once)
            gate = functional.silu(mlp.gate_proj(normalized[block]), inplace=True)
            states[block] += mlp.down_proj(gate.mul_(mlp.up_proj(normalized[block])))

    def _compute_attention(self, states: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor, causal: bool) -> Tensor:
        module, heads = self.module.self_attn, (len(states), -1, self.dimension)
        queries, keys = module.q_proj(states).view(heads), module.k_proj(states).view(heads)
        if hasattr(module, "q_norm"):
            queries, keys = apply_rms_norm(queries, module.q_norm), apply_rms_norm(keys, module.k_norm)
        queries, keys = apply_rotary(queries, cos, sin), apply_rotary(keys, cos, sin).mul_(self.scale)
        values, out = module.v_proj(states).view(heads), torch.empty_like(queries)
        for first, rows, length in packed.runs:
            at_once = max(1, MAX_SCORES // (queries.shape[1] * length * min(length, QUERY_BLOCK)))
            for row in range(0, rows, at_once):
                count = min(at_once, rows - row)
                span = slice(first + row * length, first + (row + count) * length)
                split = (count, length, -1, self.dimension)
                self._attend_equal_rows(*(x[span].view(split) for x in (queries, keys, values, out)), causal=causal)
        return out.flatten(1)

    def _attend_equal_rows(self, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, *, causal: bool) -> None:
        """Attention over rows of equal length (rows, tokens, heads, dimension), in blocks of queries."""
        (count, length, heads, dimension), group = keys.shape, self.queries_per_key
        keys = keys.permute(0, 2, 3, 1).flatten(0, 1)
        values = values.transpose(1, 2).flatten(0, 1)
        for start in range(0, length, QUERY_BLOCK):
            end = min(length, start + QUERY_BLOCK)
            visible, block = (end if causal else length), end - start
            split = (count, block, heads, group, dimension)
            query_block = queries[:, start:end].view(split).permute(0, 2, 3, 1, 4)
            scores = torch.bmm(query_block.reshape(count * heads, group * block, dimension), keys[:, :, :visible])
            if causal:
                scores.view(-1, group, block, visible)[..., start:] += _build_causal_mask(block, scores.dtype)
            attended = torch.bmm(torch.softmax(scores, dim=-1), values[:, :visible])
            attended = attended.view(count, heads, group, block, dimension).permute(0, 3, 1, 2, 4)
            out[:, start:end].view(split).copy_(attended)


class PackedDecoder:
    """A whole decoder without its language-model head."""

    def __init__(self, model: Any) -> None:
        self.embedding, self.norm, self.rope = model.embed_tokens, model.norm, model.rotary_emb
        self.layers = [DecoderLayer(module) for module in model.layers]

    def __call__(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None = None) -> Tensor:
        """The states of all concatenated rows: after the last norm, or after `layer` layers."""
        threads = torch.get_num_threads()
        workers = min(threads, MAX_WORKERS, len(rows))
        if workers == 1:
            return self._forward(rows, causal, layer)
        run = partial(self._forward, causal=causal, layer=layer)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            parts = list(pool.map(run, _split_rows(rows, workers)))
        torch.set_num_threads(threads)  # the value for threads started later
        return torch.cat(parts)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None) -> Tensor:
        packed, last = PackedRows(rows), len(self.layers)
        states = self.embedding(packed.ids)
        cos, sin = compute_position_rotations(self.rope, packed, states)
        stop = last if layer is None else layer % (last + 1)
        for step in self.layers[:stop]:
            step(states, packed, cos, sin, causal)
        return apply_rms_norm(states, self.norm) if stop == last else states


def compute_position_rotations(rope: Any, packed: PackedRows, states: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angle of each token; the first half of the sine is negated."""
    positions = packed.positions
    if rope.rope_type == "dynamic":  # the angles depend on the length of the text: one table per length
        tables = [compute_rotations(rope, length, states) for _, rows, length in packed.runs for _ in range(rows)]
        cos, sin = (torch.cat(side) for side in zip(*tables, strict=True))
        positions = torch.arange(len(positions))
    else:
        cos, sin = compute_rotations(rope, int(positions.max()) + 1, states)
    sin = torch.cat((-sin[:, : sin.shape[1] // 2], sin[:, sin.shape[1] // 2 :]), dim=1)
    return cos[positions][:, None], sin[positions][:, None]


def _split_rows(rows: Sequence[np.ndarray], workers: int) -> list[Sequence[np.ndarray]]:
    """Consecutive rows in groups with about the same number of tokens."""
    ends = np.cumsum([len(row) for row in rows])
    cuts = np.searchsorted(ends, [ends[-1] * part / workers for part in range(1, workers)], side="left") + 1
    edges = [0, *cuts.tolist(), len(rows)]
    return [rows[start:end] for start, end in pairwise(edges) if start < end]


def apply_rms_norm(states: Tensor, norm: Any) -> Tensor:
    """RMS norm over the last axis, in blocks of rows whose float32 copy fits into the cache."""
    out, weight = torch.empty_like(states), norm.weight.float()
    width = states.shape[-1]
    rows = max(1, NORM_BLOCK_VECTORS * width // max(1, states[0].numel()))
    for part, target in zip(torch.split(states, rows), torch.split(out, rows), strict=True):
        part32 = part.float()
        squared = torch.linalg.vector_norm(part32, dim=-1, keepdim=True).square_()
        scale = squared.div_(width).add_(norm.variance_epsilon).rsqrt_()
        target.copy_((part32 * scale).mul_(weight))
    return out


def apply_rotary(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to all heads."""
    return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def _build_causal_mask(block: int, dtype: torch.dtype) -> Tensor:
    """The mask that hides later tokens."""
    return torch.full((block, block), -torch.inf, dtype=dtype).triu_(1)
