"""Exact search: blocks of document vectors are read one after the other, and each query keeps its top k.

Scores are computed twice. A rough pass over all documents, in bfloat16 if the hardware is fast in it, finds candidates:
the documents that could be in the top k, given a bound on the rounding error. The candidates, a few hundred per query,
are scored again in float32, each pair separately and summed in a fixed order. So neither the rough pass nor the tile
size changes a score or the order, which is by (-score, row).

The bound. For a query q and a document d, rounded to q' and d', the Cauchy-Schwarz inequality gives

    |q'd' - qd| <= |q' - q| |d'| + |q| |d' - d| <= (|q' - q| (1 + u) + |q| u) |d|

where |q' - q| is measured, and u = 2^-8 is the maximum relative error of bfloat16. (Measuring |d' - d| too would take
more time than it saves.) A sum of n products in float32 adds an error of at most n 2^-24 |q| |d|. Numbers below 2^-126
have fewer digits or become zero; this adds at most 2^-123 (n + sqrt(n) (|q| + |d|)), which matters only for vectors far
shorter than one. If L is a lower bound of the k-th best score, from k documents already seen, a document is excluded if
its rough score is below L by more than the bound. Vectors so long or short that their scores do not fit into float32
are an error.

Memory depends on tiles, windows and k, never on queries times documents. Tensors stay on the device until the end.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from retbench.engines.device import disable_tf32, get_device, has_fast_bf16, use_search_stream
from retbench.engines.memory import is_out_of_memory, keep_freed_pages, release_gpu_cache, retry_out_of_memory
from retbench.errors import DataError
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.sort_keys import arrange_by_query, decode_rows, decode_scores, encode_keys, select_largest
from retbench.store.shard_store import VectorBlock

QUERY_TILE = 512
DOCUMENT_TILE = 2048
GPU_TILE_FACTOR = 8  # larger tiles on a GPU: small products do not use it fully
WINDOW_ROWS, WINDOW_BYTES = 1 << 15, 1 << 28  # documents of one rough pass
GROUP_SIZE = 8  # documents per group; first only the best rough score of a group is checked
PAIRS_PER_PRODUCT, PAIR_BYTES = 1 << 16, 1 << 28  # candidates scored at once on a GPU, and the bytes of their vectors
MIN_QUERIES_FOR_ROUNDING = 32  # with fewer queries, rounding all documents takes longer than it saves
# Share of a window. With more candidates, a rough pass in float32 is faster, because its bound is far smaller.
MAX_CANDIDATE_SHARE = 0.2
LOWEST_SCORE = torch.finfo(torch.bfloat16).min / 2  # above minus infinity, which marks padding
SMALLEST_PRODUCT, LARGEST_PRODUCT = 2.0**-126, 2.0**125  # of the lengths of a query and the longest document
SAFE_LENGTHS = (2.0**-40, 2.0**60)  # in these limits, squares in float32 give the length of a vector


def search_exactly(queries: np.ndarray, blocks: Iterable[VectorBlock], k: int) -> Ranking:
    """Return the k best documents of every query over all blocks."""
    search = ExactSearch(queries, k)
    for block in blocks:
        search.add_block(block)
    return search.finish()


class ExactSearch:
    """Exact search over blocks of documents that arrive one after the other."""

    @use_search_stream()
    def __init__(self, queries: np.ndarray, k: int) -> None:
        keep_freed_pages()
        self.device = get_device() if get_device().type == "cuda" else torch.device("cpu")
        rounds = has_fast_bf16() and len(queries) >= MIN_QUERIES_FOR_ROUNDING
        self.dtype = torch.bfloat16 if rounds else torch.float32
        tile = QUERY_TILE * _get_tile_factor(self.device)
        starts = range(0, len(queries), tile)
        self.tops = [RunningTopK(torch.from_numpy(queries[at : at + tile]).to(self.device), k) for at in starts]
        self.query_lengths = torch.cat([top.norms for top in self.tops]).flatten() if self.tops else torch.zeros(0)
        self.rows: list[torch.Tensor] = []  # of the incomplete window
        self.blocks: list[torch.Tensor] = []

    @use_search_stream()
    def add_block(self, block: VectorBlock) -> None:
        """Collect documents into windows, and score each window when it is full."""
        size = max(1, min(WINDOW_ROWS, WINDOW_BYTES // max(1, block.vectors[:1].nbytes)))
        for start in range(0, len(block.rows), size):
            if sum(map(len, self.rows)) + len(block.rows[start : start + size]) > size:
                self._score_window()
            self.rows.append(torch.from_numpy(block.rows[start : start + size]).to(self.device))
            vectors = torch.from_numpy(block.vectors[start : start + size])
            self.blocks.append(retry_out_of_memory(vectors.to, self.device).contiguous())

    def _score_window(self) -> None:
        if self.rows:
            window = retry_out_of_memory(DocumentWindow.build, self.rows, self.blocks, self.dtype)
            self.rows, self.blocks = [], []
            _require_float32_scores(self.query_lengths, window.max_norm)
            self.tops = [part for top in self.tops for part in _add_window(top, window)]

    @use_search_stream()
    def finish(self) -> Ranking:
        """Score the last window and return the ranking."""
        self._score_window()
        results = [top.sort_results() for top in self.tops]
        return Ranking([r for rows, _ in results for r in rows], [s for _, scores in results for s in scores])


def _require_float32_scores(query_lengths: torch.Tensor, longest: float) -> None:
    """Raise if a dot product could overflow or lose its digits. Zero vectors are allowed: their scores are zero."""
    nonzero = query_lengths[query_lengths != 0]
    if longest == 0 or not len(nonzero):
        return
    shortest_query, longest_query = nonzero.amin().item(), nonzero.amax().item()
    if not (longest * shortest_query >= SMALLEST_PRODUCT and longest * longest_query <= LARGEST_PRODUCT):
        raise DataError(
            "the dot products of these vectors do not fit into float32: "
            f"queries have lengths of {shortest_query:.3g} to {longest_query:.3g}, documents up to {longest:.3g}",
            'check the model, or compare with similarity = "cosine"',
        )


def _get_tile_factor(device: torch.device) -> int:
    return GPU_TILE_FACTOR if device.type == "cuda" else 1


def _add_window(top: "RunningTopK", window: "DocumentWindow") -> list["RunningTopK"]:
    """Add a window to a tile of queries. If memory runs out, split the tile in halves."""
    try:
        top.add_window(window)
        return [top]
    except RuntimeError as problem:
        if len(top.queries) == 1 or not is_out_of_memory(problem):
            raise
    release_gpu_cache()
    return [part for half in top.split_in_halves() for part in _add_window(half, window)]


@dataclass(frozen=True)
class DocumentWindow:
    """Some documents: the original blocks in float32, and the rounded tiles for the rough pass."""

    rows: torch.Tensor
    blocks: list[torch.Tensor]
    tiles: list[torch.Tensor]  # of equal size (documents x width); the last one is padded with zeros
    max_norm: float  # the largest vector norm

    @staticmethod
    def build(rows: list[torch.Tensor], blocks: list[torch.Tensor], dtype: torch.dtype) -> "DocumentWindow":
        """Round the vectors once for all queries. Blocks of equal size, if they need no rounding, are the tiles."""
        count, width = sum(map(len, rows)), blocks[0].shape[1]
        if dtype == blocks[0].dtype and _are_tiles(blocks):
            last = functional.pad(blocks[-1], (0, 0, 0, len(blocks[0]) - len(blocks[-1])))
            return DocumentWindow(torch.cat(rows), blocks, [*blocks[:-1], last], _measure_longest(blocks))
        tile = min(DOCUMENT_TILE * _get_tile_factor(blocks[0].device), math.ceil(count / GROUP_SIZE) * GROUP_SIZE)
        tiles = torch.empty((math.ceil(count / tile), tile, width), dtype=dtype, device=blocks[0].device)
        flat, start = tiles.view(-1, width), 0
        for block in blocks:
            flat[start : start + len(block)] = block
            start += len(block)
        flat[start:] = 0
        return DocumentWindow(torch.cat(rows), blocks, list(tiles), _measure_longest(blocks))

    def to_float32(self) -> "DocumentWindow":
        """The same documents with tiles in float32."""
        return DocumentWindow.build([self.rows], self.blocks, torch.float32)


def _are_tiles(blocks: list[torch.Tensor]) -> bool:
    """Whether the rough pass can read the blocks as they are: as large as tiles, and without a smaller one between."""
    size, device = len(blocks[0]), blocks[0].device.type
    fits = DOCUMENT_TILE // 2 <= size <= 2 * DOCUMENT_TILE and size % GROUP_SIZE == 0 and device == "cpu"
    return fits and {len(block) for block in blocks[:-1]} <= {size} and len(blocks[-1]) <= size


def _measure_longest(blocks: list[torch.Tensor]) -> float:
    """The length of the longest vector; in float64 where squares in float32 overflow or become zero."""
    longest = torch.stack([torch.linalg.vector_norm(block, dim=1).amax() for block in blocks]).amax().item()
    if SAFE_LENGTHS[0] < longest < SAFE_LENGTHS[1]:
        return longest
    lengths = [torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).amax() for block in blocks]
    return torch.stack(lengths).amax().item()


@dataclass(frozen=True)
class CandidatePairs:
    """Candidate pairs: query numbers in ascending order, and positions of documents in the window."""

    queries: torch.Tensor
    positions: torch.Tensor


class RunningTopK:
    """The current top k of one tile of queries, as integer keys that sort by (-score, row)."""

    def __init__(self, queries: torch.Tensor, k: int) -> None:
        self.k, self.queries = k, queries.contiguous()
        self.norms = torch.linalg.vector_norm(queries, dim=1, keepdim=True, dtype=torch.float64)
        self.keys = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        self.group = max(1, min(GROUP_SIZE, DOCUMENT_TILE // (2 * k)))

    def split_in_halves(self) -> "tuple[RunningTopK, RunningTopK]":
        """Two tiles with half of the queries each."""
        middle = len(self.queries) // 2
        parts = (RunningTopK(self.queries[:middle], self.k), RunningTopK(self.queries[middle:], self.k))
        parts[0].keys, parts[1].keys = self.keys[:middle], self.keys[middle:]
        return parts

    @disable_tf32()
    def add_window(self, window: DocumentWindow) -> None:
        """Update the top k with a window of documents."""
        pairs = self._find_candidates(window)
        max_pairs = len(self.queries) * max(MAX_CANDIDATE_SHARE * len(window.rows), 4 * self.k)
        if window.tiles[0].dtype != torch.float32 and len(pairs.queries) > max_pairs:
            pairs = self._find_candidates(window.to_float32())
        keys = encode_keys(_compute_scores(self.queries, window, pairs), window.rows[pairs.positions])
        self.keys = select_largest(
            torch.cat((self.keys, arrange_by_query(pairs.queries, keys, len(self.queries))), dim=1), self.k
        )

    def _find_candidates(self, window: DocumentWindow) -> CandidatePairs:
        """The pairs that the rough pass cannot exclude. Only groups whose best score reaches the threshold are read."""
        bound = self._compute_error_bound(window)
        scores, best = self._compute_rough_scores(window)
        thresholds = self._compute_thresholds(_compute_lower_bounds(best) - bound)[:, None] - bound
        thresholds = thresholds.to(best.dtype)  # rounding keeps the order
        query, column = (best >= thresholds).nonzero(as_tuple=True)
        _, queries, size, groups = scores.shape
        tile, group = column // groups, column % groups
        member = torch.arange(size, device=group.device) * groups
        start = (tile * queries + query) * size * groups + group
        which, chosen = (torch.take(scores, start[:, None] + member) >= thresholds[query]).nonzero(as_tuple=True)
        return CandidatePairs(query[which], (tile * size * groups + group)[which] + member[chosen])

    def _compute_rough_scores(self, window: DocumentWindow) -> tuple[torch.Tensor, torch.Tensor]:
        """All rough scores (tiles x queries x members x groups), and for each query the best score of each group."""
        tiles, size, query_count = len(window.tiles), len(window.tiles[0]), len(self.queries)
        queries = self.queries.to(window.tiles[0].dtype)
        group = self.group if size % self.group == 0 else 1
        shape = (tiles, query_count, size)
        is_gpu_bf16 = queries.is_cuda and queries.dtype == torch.bfloat16
        scores = queries.new_empty(shape, dtype=torch.float32 if is_gpu_bf16 else queries.dtype)
        best = scores.new_empty((query_count, tiles, size // group))
        for number, documents in enumerate(window.tiles):
            if is_gpu_bf16:  # without out_dtype, partial sums may be rounded to bfloat16
                scores[number] = torch.mm(queries, documents.T, out_dtype=torch.float32)
            else:
                torch.mm(queries, documents.T, out=scores[number])
            if number == tiles - 1:
                scores[number, :, len(window.rows) - number * size :] = -torch.inf
            best[:, number] = scores[number].view(query_count, group, -1).amax(dim=1)
        return scores.view(tiles, query_count, group, -1), best.view(query_count, -1)

    def _compute_thresholds(self, lower: torch.Tensor) -> torch.Tensor:
        """For each query a lower bound of the k-th best score; LOWEST_SCORE if fewer than k documents were seen.

        `lower` has lower bounds of the scores of some documents of the window, each document at most once.
        """
        largest = select_largest(torch.cat((decode_scores(self.keys), lower), dim=1), self.k)
        if largest.shape[1] < self.k:
            return torch.full((len(largest),), LOWEST_SCORE, device=largest.device)
        return largest.amin(dim=1).clamp(min=LOWEST_SCORE)

    def _compute_error_bound(self, window: DocumentWindow) -> torch.Tensor:
        """The maximum difference between rough score and float32 score, per query."""
        u, width, longest = 2.0**-8, self.queries.shape[1], window.max_norm
        error = 2.0**-23 * (width + 8) * self.norms  # two sums, and the sums of the norms
        if window.tiles[0].dtype != torch.float32:
            change = self.queries - self.queries.bfloat16().float()
            rounding = torch.linalg.vector_norm(change, dim=1, keepdim=True, dtype=torch.float64)
            error = error + (rounding * (1 + u) + self.norms * u) * (1 + 2.0**-16)
        below_normal = 2.0**-123 * (width + math.sqrt(width) * (self.norms + longest))
        return torch.as_tensor(error * longest + below_normal).float()

    def sort_results(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The rows and scores of each query, sorted by (-score, row)."""
        keys = self.keys.sort(dim=1, descending=True).values
        return list(decode_rows(keys).cpu().numpy()), list(decode_scores(keys).cpu().numpy())


def _compute_lower_bounds(scores: torch.Tensor) -> torch.Tensor:
    """The smallest number that rounds to each score."""
    scores32 = scores.float()
    return scores32 if scores.dtype == torch.float32 else scores32 - scores32.abs() * 2.0**-8


def _compute_scores(queries: torch.Tensor, window: DocumentWindow, pairs: CandidatePairs) -> torch.Tensor:
    """The scores of the candidates in float32. Each pair is summed separately, so its score depends on nothing else."""
    scores, start = torch.empty(len(pairs.positions), device=queries.device), 0
    multiply = multiply_sampled if queries.device.type == "cpu" else multiply_gathered
    order = _argsort(pairs.positions)  # by document: each document is read once, and the queries stay in the cache
    positions, query_numbers = pairs.positions[order], pairs.queries[order]
    for block in window.blocks:
        ends = torch.tensor([start, start + len(block)], device=positions.device)
        first, last = torch.searchsorted(positions, ends).tolist()
        scores[order[first:last]] = multiply(block, queries, positions[first:last] - start, query_numbers[first:last])
        start += len(block)
    return scores


def score_pairs(
    queries: np.ndarray, blocks: Iterable[VectorBlock], documents: np.ndarray, query_numbers: np.ndarray
) -> np.ndarray:
    """The float32 scores of some pairs, with the same bits as in exact search. `documents`, row numbers, are sorted."""
    device = get_device() if get_device().type == "cuda" else torch.device("cpu")
    scores, on_device = np.empty(len(documents), dtype=np.float32), torch.from_numpy(queries).to(device)
    multiply = multiply_sampled if device.type == "cpu" else multiply_gathered
    for block in blocks:
        first, last = (np.searchsorted(documents, block.rows, side) for side in ("left", "right"))
        counts = last - first
        pairs = np.repeat(first - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        if not len(pairs):
            continue
        vectors = torch.from_numpy(block.vectors).to(device).contiguous()
        positions, numbers = np.repeat(np.arange(len(counts)), counts), query_numbers[pairs]
        values = multiply(vectors, on_device, *(torch.from_numpy(part).to(device) for part in (positions, numbers)))
        scores[pairs] = values.cpu().numpy()
    return scores


def multiply_gathered(
    documents: torch.Tensor, queries: torch.Tensor, positions: torch.Tensor, query_numbers: torch.Tensor
) -> torch.Tensor:
    """The dot products of some pairs, on any device."""
    at_once = max(1, min(PAIRS_PER_PRODUCT, PAIR_BYTES // (4 * documents.shape[1])))
    pairs = zip(torch.split(positions, at_once), torch.split(query_numbers, at_once), strict=True)
    return torch.cat([_sum_by_halves(documents[rows] * queries[numbers]) for rows, numbers in pairs])


def _sum_by_halves(products: torch.Tensor) -> torch.Tensor:
    """Sum each line by adding halves. The order of a library kernel would depend on the number of lines."""
    while (width := products.shape[1]) > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:]
        products = products[:, :half]
    return products[:, 0]


def multiply_sampled(
    documents: torch.Tensor, queries: torch.Tensor, positions: torch.Tensor, query_numbers: torch.Tensor
) -> torch.Tensor:
    """The same with torch's kernel for sampled products. The pairs must be in the order of the documents."""
    ends = torch.bincount(positions, minlength=len(documents)).cumsum(0)
    shape, zeros = (len(documents), len(queries)), torch.zeros(len(positions))
    with warnings.catch_warnings():  # torch warns that sparse CSR is in beta
        warnings.filterwarnings("ignore", message="Sparse CSR")
        pattern = torch.sparse_csr_tensor(
            functional.pad(ends, (1, 0)), query_numbers, zeros, shape, check_invariants=False
        )
    products: torch.Tensor = torch.sparse.sampled_addmm(pattern, documents, queries.T, beta=0.0)
    return products.values()


def _argsort(positions: torch.Tensor) -> torch.Tensor:
    if positions.device.type != "cpu":
        return positions.argsort()
    return torch.from_numpy(positions.numpy().argsort())
