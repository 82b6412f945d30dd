"""Exact search by late interaction (MaxSim): texts are sets of vectors, compared vector by vector.

The score of a query and a document is the sum, over the query's vectors, of the largest dot product with any vector of
the document. Documents arrive block by block. All products of a tile of documents with a tile of queries are one matrix
product; its memory is limited, whatever the number of documents and queries. Inside a tile a shorter document is
filled with its own last vector, which changes no maximum, and a shorter query with zeros, which add nothing. The sum
is in float64. Each query keeps its top k by the keys of exact search, so ties are ordered by row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from retbench.engines.device import disable_tf32, get_device
from retbench.engines.memory import is_out_of_memory, release_gpu_cache
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.sort_keys import decode_rows, decode_scores, encode_keys, select_largest
from retbench.store.shard_store import VectorBlock

QUERY_VECTORS = 2048  # of a tile of queries, with their filling
PRODUCTS = {"cpu": 1 << 24, "cuda": 1 << 28}  # of a tile of documents with a tile of queries


@dataclass
class QueryTile:
    """Some queries: their numbers, their vectors (queries x longest x width), and their best documents so far."""

    numbers: np.ndarray
    vectors: torch.Tensor
    keys: torch.Tensor

    def add_scores(self, scores: torch.Tensor, rows: torch.Tensor, k: int) -> None:
        """Keep the k best of the documents before and of some more, whose scores are queries x documents."""
        keys = encode_keys(scores, rows.expand(len(scores), -1))
        self.keys = select_largest(torch.cat((self.keys, keys), dim=1), k)


class MaxSimSearch:
    """MaxSim search over blocks of documents. With `average`, a score is divided by the number of query vectors."""

    def __init__(self, queries: list[VectorBlock], k: int, average: bool = False) -> None:
        self.k, self.device = k, get_device() if get_device().type == "cuda" else torch.device("cpu")
        self.tiles = list(self._build_tiles(queries))
        self.lengths = np.concatenate([np.diff(block.get_offsets()) for block in queries])
        self.lengths[np.concatenate([block.rows for block in queries])] = self.lengths.copy()
        self.average = average

    def _build_tiles(self, queries: list[VectorBlock]) -> Iterator[QueryTile]:
        vectors = {
            int(row): block.vectors[start:end]
            for block in queries
            for row, start, end in zip(block.rows, block.get_offsets()[:-1], block.get_offsets()[1:], strict=True)
        }
        waiting = sorted(vectors, key=lambda row: len(vectors[row]))
        while waiting:
            longest = len(vectors[waiting[-1]])
            taken, waiting = waiting[-max(1, QUERY_VECTORS // longest) :], waiting[: -max(1, QUERY_VECTORS // longest)]
            padded = np.zeros((len(taken), longest, vectors[taken[0]].shape[1]), dtype=np.float32)
            for place, row in enumerate(taken):
                padded[place, : len(vectors[row])] = vectors[row]
            keys = torch.empty((len(taken), 0), dtype=torch.int64, device=self.device)
            yield QueryTile(np.array(taken), torch.from_numpy(padded).to(self.device), keys)

    def add_block(self, block: VectorBlock) -> None:
        """Score the documents of a block for every query."""
        offsets = block.get_offsets()
        vectors = torch.from_numpy(block.vectors).to(self.device)
        for tile in self.tiles:
            for first, last in self._cut_documents(np.diff(offsets), tile):
                self._score_documents(tile, vectors, block.rows[first:last], offsets[first : last + 1])

    def _cut_documents(self, lengths: np.ndarray, tile: QueryTile) -> Iterator[tuple[int, int]]:
        """Cut a block so that the products of each part with the tile fit; a part has at least one document."""
        most = PRODUCTS.get(self.device.type, PRODUCTS["cpu"]) // (tile.vectors.shape[0] * tile.vectors.shape[1])
        first = longest = 0
        for place, length in enumerate(lengths.tolist()):
            if place > first and max(longest, length) * (place + 1 - first) > most:
                yield first, place
                first, longest = place, 0
            longest = max(longest, length)
        yield first, len(lengths)

    def _score_documents(self, tile: QueryTile, vectors: torch.Tensor, rows: np.ndarray, offsets: np.ndarray) -> None:
        """Score some documents; if memory runs out, in two halves."""
        try:
            scores = _compute_max_sim(tile.vectors, vectors, offsets)
            tile.add_scores(scores, torch.from_numpy(rows).to(self.device), self.k)
            return
        except RuntimeError as problem:
            if len(rows) == 1 or not is_out_of_memory(problem):
                raise
        release_gpu_cache()
        middle = len(rows) // 2
        self._score_documents(tile, vectors, rows[:middle], offsets[: middle + 1])
        self._score_documents(tile, vectors, rows[middle:], offsets[middle:])

    def finish(self) -> Ranking:
        """Return the ranking of every query, in the order of the queries."""
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for tile in self.tiles:
            keys = tile.keys.sort(dim=1, descending=True).values
            rows, scores = decode_rows(keys).cpu().numpy(), decode_scores(keys).cpu().numpy()
            found.update({int(number): (rows[i], scores[i]) for i, number in enumerate(tile.numbers)})
        if self.average:
            found = {query: (rows, scores / self.lengths[query]) for query, (rows, scores) in found.items()}
        ordered = [found[query] for query in sorted(found)]
        return Ranking([rows for rows, _ in ordered], [scores for _, scores in ordered])


@disable_tf32()
def _compute_max_sim(queries: torch.Tensor, vectors: torch.Tensor, offsets: np.ndarray) -> torch.Tensor:
    """The scores of padded queries (queries x longest x width) and of the documents between the offsets."""
    count, longest_query, width = queries.shape
    starts, lengths = torch.from_numpy(offsets[:-1]), torch.from_numpy(np.diff(offsets))
    places = torch.minimum(torch.arange(int(lengths.max()))[None, :], lengths[:, None] - 1) + starts[:, None]
    documents = vectors[places.to(vectors.device).flatten()]
    products = documents @ queries.view(-1, width).T
    best = products.view(len(lengths), -1, count * longest_query).amax(dim=1)
    return best.view(len(lengths), count, longest_query).sum(dim=2, dtype=torch.float64).T.float()
