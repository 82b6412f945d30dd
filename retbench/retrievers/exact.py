"""Exact search: blocks of vectors stream past, each query keeps its k best.

Memory is bounded by one tile of queries by documents and by k, never by all queries times all documents. Products are
summed in float32. A tile's candidates are cut at the k-th score *with its ties*, so that the order by (-score, row) is
exact whatever the tiles were.
"""

from collections.abc import Iterable

import numpy as np
import torch

from retbench.retrievers.ranking import Ranking
from retbench.store.shards import Block

QUERY_TILE = 512
DOCUMENT_TILE = 8192


def search(queries: np.ndarray, blocks: Iterable[Block], k: int) -> Ranking:
    """The k best documents of every query over all blocks."""
    tiles = [torch.from_numpy(queries[start : start + QUERY_TILE]) for start in range(0, len(queries), QUERY_TILE)]
    tops = [Top(len(tile), k) for tile in tiles]
    for block in blocks:
        for start in range(0, len(block.rows), DOCUMENT_TILE):
            vectors = torch.from_numpy(block.vectors[start : start + DOCUMENT_TILE])
            rows = torch.from_numpy(block.rows[start : start + DOCUMENT_TILE])
            for tile, top in zip(tiles, tops, strict=True):
                top.add(tile @ vectors.T, rows)
    found = [top.sorted() for top in tops]
    return Ranking([r for rows, _ in found for r in rows], [s for _, scores in found for s in scores])


class Top:
    """The running best of one tile of queries; row -1 is a place not filled yet."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = torch.full((queries, 0), -torch.inf)
        self.rows = torch.full((queries, 0), -1, dtype=torch.long)

    def add(self, scores: torch.Tensor, rows: torch.Tensor) -> None:
        """Let a tile of scores compete with the best so far; few of them reach the worst that is kept."""
        rows = rows.expand(len(scores), -1)
        if self.scores.shape[1] == self.k:
            scores, rows = _reaching(scores, rows, self.scores.amin(dim=1, keepdim=True))
        scores = torch.cat((self.scores, scores), dim=1)
        rows = torch.cat((self.rows, rows), dim=1)
        if scores.shape[1] > self.k:
            scores, rows = self._cut(scores, rows)
        self.scores, self.rows = scores, rows

    def _cut(self, scores: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the k best; among those tied at the cut, the lowest rows."""
        values, places = scores.topk(self.k, dim=1)
        kept = rows.gather(1, places)
        threshold = values[:, -1:]
        tied = (scores == threshold).sum(1) > (values == threshold).sum(1)
        for query in tied.nonzero().flatten().tolist():
            above = scores[query] > threshold[query]
            equal = (scores[query] == threshold[query]).nonzero().flatten()
            lowest = equal[rows[query][equal].argsort()][: self.k - int(above.sum())]
            chosen = torch.cat((above.nonzero().flatten(), lowest))
            values[query], kept[query] = scores[query][chosen], rows[query][chosen]
        return values, kept

    def sorted(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rows and scores of each query by (-score, row)."""
        rows, scores = self.rows.numpy(), self.scores.numpy()
        order = np.lexsort((rows, -scores), axis=1)
        return list(np.take_along_axis(rows, order, 1)), list(np.take_along_axis(scores, order, 1))


def _reaching(scores: torch.Tensor, rows: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of each query that are not below its least, moved to the left; the rest of a line is empty."""
    queries, places = (scores >= least).nonzero(as_tuple=True)
    counts = torch.bincount(queries, minlength=len(scores))
    column = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
    width = int(counts.max()) if len(counts) else 0
    found = torch.full((len(scores), width), -torch.inf)
    owners = torch.full((len(scores), width), -1, dtype=torch.long)
    found[queries, column], owners[queries, column] = scores[queries, places], rows[queries, places]
    return found, owners
