"""Rows of tokens without padding, for our own forward passes on a CPU: concatenation, attention and threads.

The rows are concatenated, so all products are over real tokens. Attention over rows of equal length is one call of
torch's fused kernel. Where that kernel is slow, attention runs in blocks of queries that fit into the cache, and skips
later keys if it is causal. Groups of rows run in separate threads, so no thread waits inside a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

QUERY_BLOCK = 128
MAX_SCORES = 1 << 20  # attention scores in memory at a time
MAX_WORKERS = 8  # more threads would wait for the GIL
MLP_BLOCK_VALUES = 1 << 22  # MLP activations per block: more do not fit into the cache, fewer make products small


class PackedRows:
    """Concatenated rows, and the runs of rows of equal length: (first token, rows, tokens per row)."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        self.positions = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows]))
        self.lengths = [len(row) for row in rows]
        self.runs: list[tuple[int, int, int]] = []
        start = 0
        for row in rows:
            if self.runs and self.runs[-1][2] == len(row):
                first, count, length = self.runs[-1]
                self.runs[-1] = (first, count + 1, length)
            else:
                self.runs.append((start, 1, len(row)))
            start += len(row)


def run_in_threads(forward: Callable[[Sequence[np.ndarray]], Tensor], rows: Sequence[np.ndarray]) -> Tensor:
    """The concatenated states of all rows, with one group of rows per thread."""
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS, len(rows))
    if workers == 1:
        return forward(rows)
    groups = split_rows(rows, workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        parts = list(pool.map(forward, [[rows[at] for at in group] for group in groups]))
    torch.set_num_threads(threads)  # the value for threads started later
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for group, part in zip(groups, parts, strict=True):
        for at, row_states in zip(group, torch.split(part, [len(rows[at]) for at in group]), strict=True):
            states[at] = row_states
    return torch.cat(states)


def split_rows(rows: Sequence[np.ndarray], workers: int) -> list[list[int]]:
    """The positions of the rows in groups with about as many tokens each, so that no thread waits for another.

    The longest row that is left goes to the group with the fewest tokens. A group has its rows in their order, so that
    rows of equal length stay together.
    """
    groups: list[list[int]] = [[] for _ in range(workers)]
    tokens = [0] * workers
    for at in sorted(range(len(rows)), key=lambda at: -len(rows[at])):
        smallest = tokens.index(min(tokens))
        groups[smallest].append(at)
        tokens[smallest] += len(rows[at])
    return [sorted(group) for group in groups]


def split_into_blocks(tokens: int, mlp_width: int) -> Iterator[slice]:
    """Consecutive tokens, as many at a time as an MLP of that width should compute."""
    at_once = max(1, MLP_BLOCK_VALUES // mlp_width)
    return (slice(start, start + at_once) for start in range(0, tokens, at_once))


@cache
def has_fast_attention(dtype: torch.dtype) -> bool:
    """Whether torch's fused attention is faster than ours in blocks: without AMX, its bfloat16 products are slow."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.cpu._is_amx_tile_supported()))


def attend(
    packed: PackedRows,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    causal: bool,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of all rows over (tokens, heads, dimension). `bias` is added to the scores."""
    if not has_fast_attention(queries.dtype):
        return _attend_in_blocks(packed, queries, keys * scale, values, causal=causal, bias=bias)
    out, grouped = torch.empty_like(queries), keys.shape[1] != queries.shape[1]
    for first, rows, length in packed.runs:
        span, split = slice(first, first + rows * length), (rows, length, -1, queries.shape[-1])
        query, key, value = (tensor[span].view(split).transpose(1, 2) for tensor in (queries, keys, values))
        mask = None if bias is None else bias[None, :, :length, :length]
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
        out[span].view(split).copy_(attended.transpose(1, 2))
    return out.flatten(1)


def _attend_in_blocks(
    packed: PackedRows, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, bias: Tensor | None
) -> Tensor:
    """The same with scaled keys: two products and a softmax, for blocks of queries that fit into the cache."""
    out, dimension = torch.empty_like(queries), queries.shape[-1]
    for first, rows, length in packed.runs:
        at_once = max(1, MAX_SCORES // (queries.shape[1] * length * min(length, QUERY_BLOCK)))
        for row in range(0, rows, at_once):
            count = min(at_once, rows - row)
            span = slice(first + row * length, first + (row + count) * length)
            split = (count, length, -1, dimension)
            parts = (tensor[span].view(split) for tensor in (queries, keys, values, out))
            _attend_equal_rows(*parts, causal=causal, bias=bias)
    return out.flatten(1)


def _attend_equal_rows(
    queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, *, causal: bool, bias: Tensor | None
) -> None:
    """Attention over rows of equal length (rows, tokens, heads, dimension), in blocks of queries."""
    count, length, heads, dimension = keys.shape
    group = queries.shape[2] // heads  # queries per key
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
        if bias is not None:
            scores.view(count, heads * group, block, visible).add_(bias[:, start:end, :visible])
        attended = torch.bmm(torch.softmax(scores, dim=-1), values[:, :visible])
        attended = attended.view(count, heads, group, block, dimension).permute(0, 3, 1, 2, 4)
        out[:, start:end].view(split).copy_(attended)


def _build_causal_mask(block: int, dtype: torch.dtype) -> Tensor:
    """The mask that hides later tokens."""
    return torch.full((block, block), -torch.inf, dtype=dtype).triu_(1)
