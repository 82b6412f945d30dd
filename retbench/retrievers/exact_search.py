"""Exact search: blocks of vectors stream past, each query keeps its k best.

The products are made twice. A rough pass over everything, in bfloat16 where the machine multiplies that fast, only says
which documents *could* be among the k best: its error has a bound, and whatever the bound does not exclude is a
candidate. The candidates, a few hundred a query, are scored again in float32, one pair at a time, always summed in the
same order. So neither the rough pass nor the size of a tile changes a score or the order, which is by (-score, row).

The bound. For a query q and a document d, rounded to q' and d', Cauchy and Schwarz give

    |q'd' - qd| <= |q' - q| |d'| + |q| |d' - d| <= (|q' - q| (1 + u) + |q| u) |d|

where |q' - q| is measured and u = 2^-8 is the most by which bfloat16 changes a number, as a share of it. (To measure
|d' - d| as well takes longer than the candidates it spares.) Sums of n products in float32 add at most n 2^-24 |q| |d|
each. If L is a lower bound on the k-th best score, from k documents already seen, a document whose rough score lies
below L by more than its bound is out.

Memory is bounded by a tile of queries, by a window of documents and by k; never by queries times documents. Tensors
stay on the device until the final ids.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from retbench.engines.device import get_device, has_fast_bf16, true_float32
from retbench.engines.memory import keep_pages, ran_out, release
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

QUERY_TILE = 512
DOCUMENT_TILE = 2048
WIDER = 8  # tiles on a GPU, which small products leave idle
WINDOW_ROWS, WINDOW_BYTES = 1 << 15, 1 << 28  # of documents whose candidates are found before any is scored again
GROUP = 8  # documents of which only the best rough score is looked at first
PAIRS = 1 << 16  # scored at once where the device has no kernel for it
FEW = 32  # queries: rounding every document for so few does not pay
CROWDED = 0.2  # of a window: so many candidates cost more than a pass in float32, whose bound is far smaller
LOWEST = torch.finfo(torch.bfloat16).min / 2  # above minus infinity, which marks a place without a document
EMPTY = torch.iinfo(torch.int64).min  # below every key


def search(queries: np.ndarray, blocks: Iterable[VectorBlock], k: int) -> Ranking:
    """The k best documents of every query over all blocks."""
    keep_pages()
    here = get_device() if get_device().type == "cuda" else torch.device("cpu")
    dtype = torch.bfloat16 if has_fast_bf16() and len(queries) >= FEW else torch.float32
    tile = QUERY_TILE * _wider(here)
    starts = range(0, len(queries), tile)
    tops = [Top(torch.from_numpy(queries[at : at + tile]).to(here), k) for at in starts]
    for window in _windows(blocks, here, dtype):
        tops = [part for top in tops for part in _added(top, window)]
    found = [top.sorted() for top in tops]
    return Ranking([r for rows, _ in found for r in rows], [s for _, scores in found for s in scores])


def _wider(here: torch.device) -> int:
    return WIDER if here.type == "cuda" else 1


def _added(top: "Top", window: "Window") -> list["Top"]:
    """A tile of queries after a window; where memory runs out, its halves."""
    try:
        top.add(window)
        return [top]
    except RuntimeError as problem:
        if len(top.queries) == 1 or not ran_out(problem):
            raise
    release()
    return [part for half in top.halves() for part in _added(half, window)]


@dataclass(frozen=True)
class Window:
    """Some documents as they are, block by block, and as the rough pass takes them: one tile after the other."""

    rows: torch.Tensor
    parts: list[torch.Tensor]
    tiles: torch.Tensor  # tiles x documents x width; what is missing in the last one is zero
    length: torch.Tensor  # of the longest vector

    @staticmethod
    def of(rows: list[torch.Tensor], parts: list[torch.Tensor], dtype: torch.dtype) -> "Window":
        """Round the vectors once for all queries."""
        count, width = sum(map(len, rows)), parts[0].shape[1]
        tile = min(DOCUMENT_TILE * _wider(parts[0].device), math.ceil(count / GROUP) * GROUP)
        tiles = torch.empty((math.ceil(count / tile), tile, width), dtype=dtype, device=parts[0].device)
        flat, start, lengths = tiles.view(-1, width), 0, []
        for part in parts:
            flat[start : start + len(part)] = part
            start += len(part)
            lengths.append(torch.linalg.vector_norm(part, dim=1).amax())
        flat[start:] = 0
        return Window(torch.cat(rows), parts, tiles, torch.stack(lengths).amax())

    def precise(self) -> "Window":
        """The same in float32."""
        return Window.of([self.rows], self.parts, torch.float32)


def _windows(blocks: Iterable[VectorBlock], here: torch.device, dtype: torch.dtype) -> Iterator[Window]:
    rows: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    for block in blocks:
        size = max(1, min(WINDOW_ROWS, WINDOW_BYTES // max(1, block.vectors[:1].nbytes)))
        for start in range(0, len(block.rows), size):
            if sum(map(len, rows)) + len(block.rows[start : start + size]) > size:
                yield Window.of(rows, parts, dtype)
                rows, parts = [], []
            rows.append(torch.from_numpy(block.rows[start : start + size]).to(here))
            parts.append(torch.from_numpy(block.vectors[start : start + size]).to(here).contiguous())
    if rows:
        yield Window.of(rows, parts, dtype)


@dataclass(frozen=True)
class Pairs:
    """Candidates: their queries in rising order, and their places in the window."""

    queries: torch.Tensor
    places: torch.Tensor


class Top:
    """The running best of one tile of queries, as keys that sort by (-score, row)."""

    def __init__(self, queries: torch.Tensor, k: int) -> None:
        self.k, self.queries = k, queries.contiguous()
        self.lengths = torch.linalg.vector_norm(queries, dim=1, keepdim=True)
        self.keys = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        self.group = max(1, min(GROUP, DOCUMENT_TILE // (2 * k)))

    def halves(self) -> "tuple[Top, Top]":
        """Its queries as two tiles."""
        middle = len(self.queries) // 2
        parts = (Top(self.queries[:middle], self.k), Top(self.queries[middle:], self.k))
        parts[0].keys, parts[1].keys = self.keys[:middle], self.keys[middle:]
        return parts

    @true_float32()
    def add(self, window: Window) -> None:
        """Let a window of documents compete with the best so far."""
        pairs = self._candidates(window)
        usual = len(self.queries) * max(CROWDED * len(window.rows), 4 * self.k)
        if window.tiles.dtype != torch.float32 and len(pairs.queries) > usual:
            pairs = self._candidates(window.precise())
        keys = _key(_scores(self.queries, window, pairs), window.rows[pairs.places])
        self.keys = _largest(torch.cat((self.keys, self._lines(pairs, keys)), dim=1), self.k)

    def _candidates(self, window: Window) -> Pairs:
        """What the rough pass cannot exclude; only groups whose best reaches the least are looked into."""
        bound = self._bound(window)
        scores, best = self._rough(window)
        least = (self._least(_below(best) - bound)[:, None] - bound).to(best.dtype)  # rounding keeps the order
        query, column = (best >= least).nonzero(as_tuple=True)
        _, queries, size, groups = scores.shape
        tile, group = column // groups, column % groups
        member = torch.arange(size, device=group.device) * groups
        start = (tile * queries + query) * size * groups + group
        which, chosen = (torch.take(scores, start[:, None] + member) >= least[query]).nonzero(as_tuple=True)
        return Pairs(query[which], (tile * size * groups + group)[which] + member[chosen])

    def _rough(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """All rough scores, as tiles x queries x members x groups, and by query the best of each group."""
        (tiles, size, _), many = window.tiles.shape, len(self.queries)
        queries = self.queries.to(window.tiles.dtype)
        group = self.group if size % self.group == 0 else 1
        shape = (tiles, many, size)
        gpu = queries.is_cuda and queries.dtype == torch.bfloat16
        scores = queries.new_empty(shape, dtype=torch.float32 if gpu else queries.dtype)
        best = scores.new_empty((many, tiles, size // group))
        for number, documents in enumerate(window.tiles):
            if gpu:  # else partial sums may be rounded to bfloat16
                scores[number] = torch.mm(queries, documents.T, out_dtype=torch.float32)
            else:
                torch.mm(queries, documents.T, out=scores[number])
            if number == tiles - 1:
                scores[number, :, len(window.rows) - number * size :] = -torch.inf
            best[:, number] = scores[number].view(many, group, -1).amax(dim=1)
        return scores.view(tiles, many, group, -1), best.view(many, -1)

    def _least(self, lower: torch.Tensor) -> torch.Tensor:
        """For each query a score that the k-th best reaches; the lowest before k documents were seen.

        `lower` holds what some documents of the window reach at least, each document once.
        """
        reached = _largest(torch.cat((_score(self.keys), lower), dim=1), self.k)
        if reached.shape[1] < self.k:
            return torch.full((len(reached),), LOWEST, device=reached.device)
        return reached.amin(dim=1).clamp(min=LOWEST)

    def _bound(self, window: Window) -> torch.Tensor:
        """How far a rough score may lie from the float32 score, by query."""
        u = 2.0**-8
        off = 2.0**-23 * (self.queries.shape[1] + 8) * self.lengths  # two sums, and the sums of the lengths
        if window.tiles.dtype != torch.float32:
            rounding = torch.linalg.vector_norm(self.queries - self.queries.bfloat16().float(), dim=1, keepdim=True)
            off = off + (rounding * (1 + u) + self.lengths * u) * (1 + 2.0**-16)
        return torch.as_tensor(off * window.length)

    def _lines(self, pairs: Pairs, keys: torch.Tensor) -> torch.Tensor:
        """One key a pair, as a line a query."""
        counts = torch.bincount(pairs.queries, minlength=len(self.queries))
        column = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[pairs.queries]
        lines = torch.full((len(counts), int(counts.max())), EMPTY, device=keys.device)
        lines[pairs.queries, column] = keys
        return lines

    def sorted(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rows and scores of each query by (-score, row)."""
        keys = self.keys.sort(dim=1, descending=True).values
        return list(_row(keys).cpu().numpy()), list(_score(keys).cpu().numpy())


def _below(scores: torch.Tensor) -> torch.Tensor:
    """The least number that was rounded to each score."""
    wide = scores.float()
    return wide if scores.dtype == torch.float32 else wide - wide.abs() * 2.0**-8


def _scores(queries: torch.Tensor, window: Window, pairs: Pairs) -> torch.Tensor:
    """The candidates' scores in float32: each pair is summed by itself, so its score depends on nothing else."""
    scores, start = torch.empty(len(pairs.places), device=queries.device), 0
    products = sampled if queries.device.type == "cpu" else gathered
    order = _order(pairs.places)  # document after document: each is read once, the queries stay in the cache
    places, owners = pairs.places[order], pairs.queries[order]
    for part in window.parts:
        ends = torch.tensor([start, start + len(part)], device=places.device)
        first, last = torch.searchsorted(places, ends).tolist()
        scores[order[first:last]] = products(part, queries, places[first:last] - start, owners[first:last])
        start += len(part)
    return scores


def gathered(
    documents: torch.Tensor, queries: torch.Tensor, places: torch.Tensor, owners: torch.Tensor
) -> torch.Tensor:
    """The products of some pairs, on any device."""
    pairs = zip(torch.split(places, PAIRS), torch.split(owners, PAIRS), strict=True)
    return torch.cat([_folded(documents[place] * queries[owner]) for place, owner in pairs])


def _folded(products: torch.Tensor) -> torch.Tensor:
    """Sums of lines, half upon half; a kernel's own sum goes another way for another number of lines."""
    while (width := products.shape[1]) > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:]
        products = products[:, :half]
    return products[:, 0]


def sampled(documents: torch.Tensor, queries: torch.Tensor, places: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """The same where torch has a kernel for it; the pairs are in the order of the documents."""
    ends = torch.bincount(places, minlength=len(documents)).cumsum(0)
    shape, zeros = (len(documents), len(queries)), torch.zeros(len(places))
    with warnings.catch_warnings():  # that compressed rows are new in torch
        warnings.filterwarnings("ignore", message="Sparse CSR")
        wanted = torch.sparse_csr_tensor(
            torch.nn.functional.pad(ends, (1, 0)), owners, zeros, shape, check_invariants=False
        )
    found: torch.Tensor = torch.sparse.sampled_addmm(wanted, documents, queries.T, beta=0.0)
    return found.values()


def _order(places: torch.Tensor) -> torch.Tensor:
    if places.device.type != "cpu":
        return places.argsort()
    return torch.from_numpy(places.numpy().argsort())


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each line, in any order."""
    if values.shape[1] <= k:
        return values
    if values.device.type != "cpu":
        return values.topk(k, dim=1, sorted=False).values
    places = values.shape[1] - k  # numpy's selection is several times as fast as torch's on a CPU
    return torch.from_numpy(np.partition(values.numpy(), places, axis=1)[:, places:].copy())  # a view would keep all


def _key(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One whole number whose order is by (score, -row): a float's bits, made to sort as its value, above the row's."""
    bits = (scores + 0.0).view(torch.int32)  # minus zero is zero
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32) | (0xFFFFFFFF - rows)


def _score(keys: torch.Tensor) -> torch.Tensor:
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def _row(keys: torch.Tensor) -> torch.Tensor:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)
