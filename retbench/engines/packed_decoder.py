"""Our own forward pass on a CPU for decoders of the Llama shape: no padding, and little beside the matrix products.

Rows lie one after the other, so every product is over real tokens only. Attention runs in blocks of queries that fit
into the cache and skips the keys to come. Groups of rows run in threads of their own: no thread waits inside a layer.
The model's own modules are called, so what was trained, adapted or moved is what is computed; what differs between the
families (biases, norms of heads, heads that share keys) is in their modules too.
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

MLP_BLOCK_VALUES = 1 << 22  # values of the widened MLP at a time: more leaves the cache, fewer are small products
QUERY_BLOCK = 128
NORM_BLOCK_VECTORS = 256  # vectors normalised at a time
MAX_SCORES = 1 << 20  # attention scores held at a time
MAX_WORKERS = 8  # more would wait for Python's lock


def supports_packed_decoding(model: Any) -> bool:
    """Whether everything in the model is something this pass computes."""
    config = model.config
    if config.model_type not in SUPPORTED_FAMILIES or model.device.type != "cpu" or config.hidden_act != "silu":
        return False
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    windowed = config.model_type == "mistral" and config.sliding_window is not None
    whole = 2 * len(model.rotary_emb.inv_freq) == model.layers[0].self_attn.head_dim
    return whole and not sliding and not windowed and model.rotary_emb.rope_type in SUPPORTED_ROPES


class PackedRows:
    """Rows one after the other, and the runs of rows that are equally long: (first token, rows, tokens a row)."""

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
    """One block of the decoder."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.dimension = int(module.self_attn.head_dim)
        self.queries_per_key = int(module.self_attn.num_key_value_groups)
        self.scale = float(module.self_attn.scaling)

    def __call__(self, states: Tensor, packed: PackedRows, cos: Tensor, sin: Tensor, causal: bool) -> None:
        """Add this block's attention and MLP to the states, in place."""
        module, mlp = self.module, self.module.mlp
        attended = self._compute_attention(apply_rms_norm(states, module.input_layernorm), packed, cos, sin, causal)
        states += module.self_attn.o_proj(attended)
        ready = apply_rms_norm(states, module.post_attention_layernorm)
        at_once = max(1, MLP_BLOCK_VALUES // mlp.intermediate_size)
        for start in range(0, len(states), at_once):
            block = slice(start, start + at_once)
            gate = functional.silu(mlp.gate_proj(ready[block]), inplace=True)
            states[block] += mlp.down_proj(gate.mul_(mlp.up_proj(ready[block])))

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
        """Attention of equally long rows (rows, tokens, heads, dimension), a block of queries at a time."""
        (count, length, heads, dimension), shared = keys.shape, self.queries_per_key
        keys = keys.permute(0, 2, 3, 1).flatten(0, 1)
        values = values.transpose(1, 2).flatten(0, 1)
        for start in range(0, length, QUERY_BLOCK):
            end = min(length, start + QUERY_BLOCK)
            seen, block = (end if causal else length), end - start
            split = (count, block, heads, shared, dimension)
            asked = queries[:, start:end].view(split).permute(0, 2, 3, 1, 4)
            scores = torch.bmm(asked.reshape(count * heads, shared * block, dimension), keys[:, :, :seen])
            if causal:
                scores.view(-1, shared, block, seen)[..., start:] += _build_causal_mask(block, scores.dtype)
            found = torch.bmm(torch.softmax(scores, dim=-1), values[:, :seen])
            found = found.view(count, heads, shared, block, dimension).permute(0, 3, 1, 2, 4)
            out[:, start:end].view(split).copy_(found)


class PackedDecoder:
    """A whole decoder without its head."""

    def __init__(self, model: Any) -> None:
        self.embedding, self.norm, self.rope = model.embed_tokens, model.norm, model.rotary_emb
        self.layers = [DecoderLayer(module) for module in model.layers]

    def __call__(self, rows: Sequence[np.ndarray], causal: bool, layer: int | None = None) -> Tensor:
        """The states of all rows, one after the other: after the last norm, or after so many layers."""
        threads = torch.get_num_threads()
        workers = min(threads, MAX_WORKERS, len(rows))
        if workers == 1:
            return self._forward(rows, causal, layer)
        run = partial(self._forward, causal=causal, layer=layer)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            parts = list(pool.map(run, _split_rows(rows, workers)))
        torch.set_num_threads(threads)  # what threads to come start with
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
    """Cosine and sine of each token's angles, the sine with the sign of a half turn."""
    positions = packed.positions
    if rope.rope_type == "dynamic":  # a text's own length decides: a table for every length
        tables = [compute_rotations(rope, length, states) for _, rows, length in packed.runs for _ in range(rows)]
        cos, sin = (torch.cat(side) for side in zip(*tables, strict=True))
        positions = torch.arange(len(positions))
    else:
        cos, sin = compute_rotations(rope, int(positions.max()) + 1, states)
    sin = torch.cat((-sin[:, : sin.shape[1] // 2], sin[:, sin.shape[1] // 2 :]), dim=1)
    return cos[positions][:, None], sin[positions][:, None]


def _split_rows(rows: Sequence[np.ndarray], workers: int) -> list[Sequence[np.ndarray]]:
    """Neighbouring rows in groups of about equally many tokens."""
    ends = np.cumsum([len(row) for row in rows])
    cuts = np.searchsorted(ends, [ends[-1] * part / workers for part in range(1, workers)], side="left") + 1
    edges = [0, *cuts.tolist(), len(rows)]
    return [rows[start:end] for start, end in pairwise(edges) if start < end]


def apply_rms_norm(states: Tensor, norm: Any) -> Tensor:
    """Root-mean-square norm over the last axis; some rows at a time, so that their float32 stays in the cache."""
    out, weight = torch.empty_like(states), norm.weight.float()
    width = states.shape[-1]
    rows = max(1, NORM_BLOCK_VECTORS * width // max(1, states[0].numel()))
    for part, place in zip(torch.split(states, rows), torch.split(out, rows), strict=True):
        wide = part.float()
        squared = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squared.div_(width).add_(norm.variance_epsilon).rsqrt_()
        place.copy_((wide * scale).mul_(weight))
    return out


def apply_rotary(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position: each head's halves turned against each other."""
    return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def _build_causal_mask(block: int, dtype: torch.dtype) -> Tensor:
    """What keeps a token from the ones after it."""
    return torch.full((block, block), -torch.inf, dtype=dtype).triu_(1)
