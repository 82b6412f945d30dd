"""The batch plan: which texts are in which shard, and which texts of a shard form a batch.

Texts are sorted by number of tokens. Shard s takes every n-th of them, so all shards have the same mix of lengths and
take about the same time. Inside a shard a batch ends where its padded tokens would exceed the budget. The plan is
deterministic: the same lengths and budget give the same batches.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHARD_ROWS = 2048


@dataclass(frozen=True)
class BatchPlan:
    """Rows in `order`, longest first, dealt to `shards` shards."""

    order: np.ndarray
    lengths: np.ndarray
    budget: int
    shards: int

    @staticmethod
    def build(lengths: np.ndarray, budget: int, shard_rows: int) -> "BatchPlan":
        """Build the plan for texts of these lengths."""
        order = np.argsort(-lengths, kind="stable")
        return BatchPlan(order, lengths, budget, max(1, math.ceil(len(lengths) / shard_rows)))

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the batches."""
        digest = hashlib.sha256(f"{self.budget} {self.shards} ".encode())
        for part in (self.order, self.lengths):  # without a copy: the arrays are large
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def get_shard_rows(self, shard: int) -> np.ndarray:
        """The rows of one shard, longest first."""
        return self.order[shard :: self.shards]

    def iterate_batches(self, shard: int) -> Iterator[np.ndarray]:
        """The batches of a shard. Padded tokens stay within the budget, except in a batch of one longer text."""
        rows = self.get_shard_rows(shard)
        start = 0
        while start < len(rows):
            size = max(1, self.budget // max(1, int(self.lengths[rows[start]])))
            yield rows[start : start + size]
            start += size
