"""Search over compressed vectors: int8 with one scale per vector, or binary, the sign of each number.

All documents are scored by their codes. The integer sums are exact, so tile sizes and the kind of hardware change no
score. Then the first documents of each query are scored again in float32, from the stored vectors, as exact search
scores them. Documents behind them keep the order of the codes; their scores are shifted to stay below.

    int8     score = scale(q) scale(d) sum(q_i d_i); scale(v) = max|v_i| / 127
    binary   score = 1 - 2 h / width; h, the Hamming distance, is the number of different signs; zero counts as negative

A document takes `width` + 4 bytes in int8 and `width` / 8 in binary, beside 4 `width` in float32. Codes of a binary
document are packed bits; a tile is unpacked to -1 and 1 while it is scored, so that both kinds are one product of int8.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from retbench.cards.ann_settings import CompressedSettings, CompressedType
from retbench.engines.device import get_device, use_search_stream
from retbench.engines.memory import keep_freed_pages
from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.sort_keys import arrange_by_query, decode_rows, decode_scores, encode_keys, select_largest
from retbench.store.shard_store import VectorBlock

QUERY_TILE, DOCUMENT_TILE = 512, 8192
FIRST_DOCUMENTS, SEED_FACTOR = 512, 4  # of a search, before there are k documents to compare with
PADDED_WIDTH = 32  # widths are padded to a multiple, as GPUs require for products of int8
MIN_GPU_ROWS = 32  # the fewest rows of a product of int8 on a GPU
EXACT_FLOAT_WIDTH = 1024  # sums of so many products of int8 are below 2^24, so float32 adds them without an error

ReadBlocks = Callable[[], Iterable[VectorBlock]]


@dataclass(frozen=True)
class VectorCodes:
    """Compressed vectors: int8 with scales, or packed sign bits."""

    numbers: np.ndarray
    width: int
    scales: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales."""
        return self.numbers.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def select(self, start: int, end: int) -> "VectorCodes":
        """Some consecutive vectors."""
        return VectorCodes(self.numbers[start:end], self.width, None if self.scales is None else self.scales[start:end])

    def unpack(self, device: torch.device) -> torch.Tensor:
        """The codes as a matrix of int8, padded with zeros."""
        rows = self.numbers
        if self.scales is None:
            rows = (np.unpackbits(rows, axis=1, count=self.width) * np.uint8(2)).view(np.int8) - np.int8(1)
        missing = -self.width % PADDED_WIDTH
        padded = np.pad(rows, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(rows)
        return torch.from_numpy(padded).to(device)

    def get_scales(self, device: torch.device) -> torch.Tensor:
        """The factor of each vector's sums."""
        if self.scales is None:
            return torch.full((len(self.numbers),), 1 / self.width, dtype=torch.float32, device=device)
        return torch.from_numpy(self.scales).to(device)


def compress_vectors(vectors: np.ndarray, name: CompressedType) -> VectorCodes:
    """Compress float32 vectors. A zero vector has the scale zero."""
    width = vectors.shape[1]
    if name == "binary":
        return VectorCodes(np.packbits(vectors > 0, axis=1), width)
    scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return VectorCodes(np.rint(vectors / divisors[:, None]).astype(np.int8), width, scales)


def search_compressed(
    settings: CompressedSettings, queries: np.ndarray, blocks: Iterable[VectorBlock], read_again: ReadBlocks, k: int
) -> Ranking:
    """The k best documents of every query. `read_again` gives the same blocks once more, to score the first again."""
    search = CompressedSearch(settings.name, queries, max(k, settings.rescore))
    for block in blocks:
        search.add_block(block)
    ranking = search.finish()
    if settings.rescore:
        ranking = rescore_ranking(ranking, queries, read_again(), settings.rescore)
    return Ranking([rows[:k] for rows in ranking.rows], [scores[:k] for scores in ranking.scores])


class CompressedSearch:
    """Search over blocks of documents that arrive one after the other; each query keeps its best k."""

    @use_search_stream()
    def __init__(self, name: CompressedType, queries: np.ndarray, k: int) -> None:
        keep_freed_pages()
        self.device = get_device() if get_device().type == "cuda" else torch.device("cpu")
        self.name, self.k = name, k
        codes = compress_vectors(queries, name)
        parts = [codes.select(start, start + QUERY_TILE) for start in range(0, len(queries), QUERY_TILE)]
        self.queries = [part.unpack(self.device) for part in parts]
        self.scales = [part.get_scales(self.device) for part in parts]  # factors of whole lines, so used at the end
        self.keys = [torch.empty((len(part), 0), dtype=torch.int64, device=self.device) for part in parts]

    def add_block(self, block: VectorBlock) -> None:
        """Compress a block and score it."""
        self.add_codes(block.rows, compress_vectors(block.vectors, self.name))

    @use_search_stream()
    def add_codes(self, rows: np.ndarray, codes: VectorCodes) -> None:
        """Score documents that are already compressed."""
        for start in range(0, len(codes), DOCUMENT_TILE):
            part = codes.select(start, start + DOCUMENT_TILE)
            documents = part.unpack(self.device)
            scales = part.get_scales(self.device) if self.name == "int8" else None
            part_rows = torch.from_numpy(rows[start : start + DOCUMENT_TILE]).to(self.device)
            for number, queries in enumerate(self.queries):
                sums = multiply_codes(queries, documents)
                scores = sums if scales is None else sums * scales
                self.keys[number] = _merge_scores(self.keys[number], scores, part_rows, self.k)

    @use_search_stream()
    def finish(self) -> Ranking:
        """The k best documents of every query by their codes."""
        rows, scores = list[np.ndarray](), list[np.ndarray]()
        for keys, scales in zip(self.keys, self.scales, strict=True):
            ordered = keys.sort(dim=1, descending=True).values
            rows += list(decode_rows(ordered).cpu().numpy())
            scores += list((decode_scores(ordered) * scales[:, None]).cpu().numpy())
        return Ranking(rows, scores)


def _merge_scores(keys: torch.Tensor, scores: torch.Tensor, rows: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest keys after a tile of documents; only scores that reach the k-th best so far are looked at."""
    if keys.shape[1] < k:
        first = max(FIRST_DOCUMENTS, SEED_FACTOR * k)  # these alone become keys, and set the threshold of the others
        new = encode_keys(scores[:, :first].float(), rows[:first].expand(len(scores), -1))
        keys = select_largest(torch.cat((keys, new), dim=1), k)
        return keys if first >= len(rows) else _merge_scores(keys, scores[:, first:], rows[first:], k)
    lowest = decode_scores(keys.amin(dim=1)).to(scores.dtype)
    is_candidate = scores >= lowest[:, None]
    if scores.device.type == "cpu":  # numpy finds the few true values several times faster
        found = torch.from_numpy(np.flatnonzero(is_candidate.numpy()))
    else:
        found = is_candidate.flatten().nonzero().flatten()
    if not len(found):
        return keys
    query_numbers, positions = found // scores.shape[1], found % scores.shape[1]
    new = encode_keys(scores[query_numbers, positions].float(), rows[positions])
    return select_largest(torch.cat((keys, arrange_by_query(query_numbers, new, len(keys))), dim=1), k)


def multiply_codes(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """The sums of products of two matrices of int8, exact, as int32."""
    if queries.is_cuda:
        padded = torch.nn.functional.pad(queries, (0, 0, 0, max(0, MIN_GPU_ROWS - len(queries))))
        filled = torch.nn.functional.pad(documents, (0, 0, 0, -len(documents) % MIN_GPU_ROWS))
        product: torch.Tensor = torch._int_mm(padded, filled.T)
        return product[: len(queries), : len(documents)]
    if has_exact_int8_product():
        exact: torch.Tensor = torch._int_mm(queries, documents.T)
        return exact
    sums = torch.zeros((len(queries), len(documents)), dtype=torch.int32)
    for start in range(0, queries.shape[1], EXACT_FLOAT_WIDTH):
        columns = slice(start, start + EXACT_FLOAT_WIDTH)
        sums += torch.mm(queries[:, columns].float(), documents[:, columns].float().T).int()
    return sums


@cache
def has_exact_int8_product() -> bool:
    """Whether this CPU adds products of int8 without an error: with AVX2 alone, sums of two saturate at 16 bits."""
    for rows in (1, 64):
        large = torch.full((rows, 2 * PADDED_WIDTH), 127, dtype=torch.int8)
        if not (torch._int_mm(large, large[:1].expand(64, -1).T) == 2 * PADDED_WIDTH * 127**2).all():
            return False
    return True


def rescore_ranking(ranking: Ranking, queries: np.ndarray, blocks: Iterable[VectorBlock], first: int) -> Ranking:
    """Score the first documents of each query again in float32, and sort them; the others follow in their old order."""
    heads = [rows[:first] for rows in ranking.rows]
    query_numbers = np.repeat(np.arange(len(heads)), [len(rows) for rows in heads])
    candidates = np.concatenate(heads) if heads else np.empty(0, dtype=np.int64)
    order = np.argsort(candidates, kind="stable")
    scores = np.empty(len(candidates), dtype=np.float32)
    scores[order] = exact_search.score_pairs(queries, blocks, candidates[order], query_numbers[order])
    rescored, start = Ranking([], []), 0
    for rows, old_scores in zip(ranking.rows, ranking.scores, strict=True):
        count = min(first, len(rows))
        new_scores = scores[start : start + count]
        start += count
        best = np.lexsort((rows[:count], -new_scores))
        rescored.rows.append(np.concatenate((rows[:count][best], rows[count:])))
        rescored.scores.append(np.concatenate((new_scores[best], _shift_below(old_scores[count:], new_scores))))
    return rescored


def _shift_below(scores: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Scores with the same differences, the largest of them at most the lowest of those above."""
    if not len(scores) or not len(above):
        return scores
    lowest = above.min()
    shifted = scores - max(np.float32(0), scores.max() - lowest)
    return np.asarray(np.minimum(shifted, lowest))  # the difference may have been rounded upwards
