"""From texts to stored vectors: finished shards are read, missing ones computed, each handed on at once.

A run that was stopped, by anything, goes on from its last finished shard with the plan it began with.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from retbench.cards.home import need_room
from retbench.cards.method import Role
from retbench.corpora.texts import Texts, joined
from retbench.encoders.batches import SHARD_ROWS, Plan
from retbench.encoders.dense import DenseEncoder
from retbench.encoders.wording import Tokens
from retbench.engines import memory
from retbench.errors import DataError, ResourceError
from retbench.store.key import digest
from retbench.store.narrow import row_bytes
from retbench.store.shards import Block, Store

log = logging.getLogger(__name__)

OnBatch = Callable[[int, int, int, int], None]  # texts done, texts in all, tokens computed, tokens left to compute


@dataclass(frozen=True)
class Job:
    """The texts of one side of a collection, to be embedded into one store."""

    texts: Texts
    fields: tuple[str, ...]
    role: Role
    budget: int
    shard_rows: int = SHARD_ROWS

    def key(self, facts: dict[str, Any]) -> str:
        """The name of these vectors, given the encoder's facts."""
        return digest(
            {**facts, "fields": self.fields if self.role == "document" else None, "texts": self.texts.fingerprint}
        )

    def strings(self) -> Iterator[str]:
        """The texts as the model reads them; a query has no title."""
        fields = self.fields if self.role == "document" else ("text",)
        return (joined(row, fields) for row in self.texts)


def embed(encoder: Callable[[], DenseEncoder], job: Job, store: Store, on_batch: OnBatch) -> Iterator[Block]:
    """Every row of the job, shard by shard. A finished store needs neither the model nor a tokenizer."""
    with store.alone():
        work = Work(encoder, job, store)
        complete = store.complete()
        shards = store.plan(dict)["shards"] if complete else work.begin()
        for shard in range(shards):
            block = store.read(shard)
            if block:
                on_batch(len(block.rows), len(job.texts), 0, work.left)
            yield block or work.compute(shard, on_batch)
        if not complete:
            store.finish({"peak_memory_mb": round(memory.peak_mb(), 1)})


@dataclass
class Work:
    """A job under way; it is tokenised and planned when the first shard is missing."""

    make: Callable[[], DenseEncoder]
    job: Job
    store: Store
    left: int = field(default=0, init=False)  # tokens of the shards that are still missing
    split: int = field(default=0, init=False)  # batches of the current shard that did not fit into memory

    @cached_property
    def encoder(self) -> DenseEncoder:
        """The encoder, loaded when it is needed."""
        return self.make()

    @cached_property
    def tokens(self) -> Tokens:
        """Every text as token ids."""
        return self.encoder.prepare(self.job.strings(), self.job.role)

    @cached_property
    def plan(self) -> Plan:
        """The plan that was saved at the first start, else a new one, now saved."""
        saved = self.store.plan(self._facts)
        memory.use_threads(saved["threads"])
        plan = Plan.of(self.tokens.lengths, saved["budget"], saved["shard_rows"])
        if plan.fingerprint != saved["fingerprint"]:
            raise DataError(f"{self.store.folder} was planned for other tokens", "remove that folder and run again")
        return plan

    def _facts(self) -> dict[str, Any]:
        tokens, longest = self.tokens, int(self.tokens.lengths.max())
        budget = memory.token_budget(self._probe, longest, self.job.budget)
        plan = Plan.of(tokens.lengths, budget, self.job.shard_rows)
        return {
            "rows": len(self.job.texts),
            "tokens": len(tokens.flat),
            "longest": longest,
            "truncated": tokens.truncated,
            "empty": tokens.empty,
            "threads": memory.threads(),
            "kernel": self.encoder.kernel,
            "budget": budget,
            "shard_rows": self.job.shard_rows,
            "shards": plan.shards,
            "fingerprint": plan.fingerprint,
        }

    def _probe(self, texts: int) -> None:
        longest = int(self.tokens.lengths.argmax())
        self.encoder.vectors(self.tokens.take(np.full(texts, longest)))

    def begin(self) -> int:
        """Make or take up the plan, and refuse early what the disk cannot hold; how many shards there are."""
        missing = self._missing()
        self.left = sum(int(self.tokens.lengths[self.plan.rows(shard)].sum()) for shard in missing)
        need_room(self.store.folder, self._bytes(missing))
        return self.plan.shards

    def _missing(self) -> list[int]:
        return [shard for shard in range(self.plan.shards) if not self.store.has(shard)]

    def _bytes(self, shards: list[int]) -> float:
        return sum(len(self.plan.rows(shard)) for shard in shards) * row_bytes(
            self.encoder.dimension, self.store.vector_dtype
        )

    def compute(self, shard: int, on_batch: OnBatch) -> Block:
        """Run the shard's batches and store it."""
        started, rows, parts = time.perf_counter(), self.plan.rows(shard), []
        self.split = 0
        for batch in self.plan.batches(shard):
            tokens = self.tokens.take(batch)
            vectors = self._vectors(tokens)
            self._check(batch, vectors)
            parts.append(vectors)
            self.left = max(0, self.left - len(tokens.flat))  # a damaged shard was not expected
            on_batch(len(batch), len(self.tokens), len(tokens.flat), self.left)
        block = Block(rows, np.concatenate(parts))
        return self._kept(shard, block, int(self.tokens.lengths[rows].sum()), time.perf_counter() - started)

    def _kept(self, shard: int, block: Block, tokens: int, seconds: float) -> Block:
        try:
            return self.store.write(shard, block, tokens, seconds, self.split)
        except ResourceError as problem:
            missing = self._missing()
            kept = self.plan.shards - len(missing)
            raise ResourceError(
                problem.cause,
                f"make room for {self._bytes(missing) / 1e6:,.1f} MB, then run the same command: "
                f"{kept} of {self.plan.shards} shards are kept",
            ) from problem

    def _vectors(self, batch: Tokens) -> np.ndarray:
        """One batch; only when memory really ran out, in two halves."""
        try:
            return self.encoder.vectors(batch)
        except (RuntimeError, MemoryError) as problem:
            if not memory.ran_out(problem):
                raise
            if len(batch) == 1:
                raise ResourceError(
                    f"one {self.job.role} of {len(batch.flat)} tokens does not fit into memory beside the model",
                    "give a smaller --set max_length, --set dtype=bfloat16, or RETBENCH_DEVICE=cpu",
                ) from problem
        self.split += 1
        log.warning("out of memory at %d texts, %d tokens: run in two halves", len(batch), len(batch.flat))
        memory.release()
        halves = np.array_split(np.arange(len(batch)), 2)
        return np.concatenate([self._vectors(batch.take(half)) for half in halves])

    def _check(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """A vector of length one has neither a number that is none nor zeros alone."""
        bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
        if len(bad):
            name = self.job.texts[int(rows[bad[0]])].id
            raise DataError(
                f"the vector of {self.job.role} {name!r} is zero or not a number",
                "try --set dtype=float32; if it stays, the weights are damaged",
            )
