"""The batch plan: which texts go into which shard, and which of a shard's texts are run together.

Texts are sorted by token count; shard s takes every n-th of them, so that each shard sees the whole length range and
takes about as long as any other. Inside a shard a batch is cut where padded tokens would pass the budget. The plan
depends on the lengths and on nothing random: the same lengths and budget give the same batches.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHARD_ROWS = 2048


@dataclass(frozen=True)
class Plan:
    """`order` lists the rows from longest to shortest."""

    order: np.ndarray
    lengths: np.ndarray
    budget: int
    shards: int

    @staticmethod
    def of(lengths: np.ndarray, budget: int, shard_rows: int) -> "Plan":
        """A plan for texts of these lengths."""
        order = np.argsort(-lengths, kind="stable")
        return Plan(order, lengths, budget, max(1, math.ceil(len(lengths) / shard_rows)))

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides which texts are run together."""
        found = hashlib.sha256(f"{self.budget} {self.shards} ".encode())
        for part in (self.order, self.lengths):  # hashed where they lie: millions of texts make large arrays
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    def rows(self, shard: int) -> np.ndarray:
        """The rows of one shard, longest first."""
        return self.order[shard :: self.shards]

    def batches(self, shard: int) -> Iterator[np.ndarray]:
        """A shard's rows in groups whose padded size stays within the budget; one text may exceed it alone."""
        rows = self.rows(shard)
        start = 0
        while start < len(rows):
            size = max(1, self.budget // max(1, int(self.lengths[rows[start]])))
            yield rows[start : start + size]
            start += size
