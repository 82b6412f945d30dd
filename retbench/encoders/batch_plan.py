"""The batch plan: which texts are in which shard, and which texts of a shard form a batch.

Texts are sorted by number of tokens and distributed over stripes: stripe s takes every n-th of them, so stripes have
the same mix of lengths. Inside a stripe a batch ends where its padded tokens would exceed the budget. A shard is some
consecutive batches of one stripe, about half a minute of work, because an interruption loses one shard. The size of
shards never changes a batch, so it changes no vector. The plan is deterministic: the same lengths, budget and limit
give the same batches and shards.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

SHARD_ROWS = 2048
SHARD_SECONDS = 30
# FLOP per second that a forward pass usually reaches: an estimate and not a measurement, because two first runs on one
# kind of machine must be cut into the same shards. Of a CPU per thread.
USUAL_SPEED = {
    ("cpu", "float32"): 2e10,
    ("cpu", "bfloat16"): 8e10,
    ("cpu", "int8"): 4e10,
    ("cuda", "float32"): 2e13,
    ("cuda", "bfloat16"): 1e14,
}
OTHER_SPEED = 2e12


def estimate_shard_tokens(flops_per_token: float | None, device: str, dtype: str, threads: int) -> int | None:
    """Estimate how many tokens are about half a minute of work; None if the cost of a token is not known."""
    if not flops_per_token:
        return None
    speed = USUAL_SPEED.get((device, dtype), OTHER_SPEED) * (threads if device == "cpu" else 1)
    return max(1, int(SHARD_SECONDS * speed / flops_per_token))


class ShardBounds(NamedTuple):
    """The rows of one shard: a range in a stripe."""

    stripe: int
    start: int
    end: int


@dataclass(frozen=True)
class BatchPlan:
    """Rows in `order`, longest first, distributed over `stripes`; shards have at most `shard_tokens` tokens."""

    order: np.ndarray
    lengths: np.ndarray
    budget: int
    stripes: int
    shard_tokens: int | None = None  # None: a stripe is a shard

    @staticmethod
    def build(lengths: np.ndarray, budget: int, shard_rows: int, shard_tokens: int | None = None) -> "BatchPlan":
        """Build the plan for texts of these lengths."""
        order = np.argsort(-lengths, kind="stable")
        return BatchPlan(order, lengths, budget, max(1, math.ceil(len(lengths) / shard_rows)), shard_tokens)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self._bounds)

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the batches and shards."""
        limit = f"{self.shard_tokens} " if self.shard_tokens else ""
        digest = hashlib.sha256(f"{self.budget} {self.stripes} {limit}".encode())
        for part in (self.order, self.lengths):  # without a copy: the arrays are large
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def get_shard_rows(self, shard: int) -> np.ndarray:
        """The rows of one shard, longest first."""
        stripe, start, end = self._bounds[shard]
        return self._get_stripe(stripe)[start:end]

    def iterate_batches(self, shard: int) -> Iterator[np.ndarray]:
        """The batches of a shard. Padded tokens stay within the budget, except in a batch of one longer text."""
        return self._cut_batches(self.get_shard_rows(shard))

    def _get_stripe(self, stripe: int) -> np.ndarray:
        return self.order[stripe :: self.stripes]

    def _cut_batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        start = 0
        while start < len(rows):
            size = max(1, self.budget // max(1, int(self.lengths[rows[start]])))
            yield rows[start : start + size]
            start += size

    @cached_property
    def _bounds(self) -> list[ShardBounds]:
        return [bounds for stripe in range(self.stripes) for bounds in self._cut_shards(stripe)]

    def _cut_shards(self, stripe: int) -> Iterator[ShardBounds]:
        """Cut a stripe before the batch that would exceed the limit; a shard has whole batches, at least one."""
        rows = self._get_stripe(stripe)
        start = end = tokens = 0
        for batch in self._cut_batches(rows) if self.shard_tokens else ():
            batch_tokens = int(self.lengths[batch].sum())
            if end > start and tokens + batch_tokens > (self.shard_tokens or 0):
                yield ShardBounds(stripe, start, end)
                start, tokens = end, 0
            end, tokens = end + len(batch), tokens + batch_tokens
        yield ShardBounds(stripe, start, len(rows))
