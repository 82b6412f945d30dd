"""From texts to stored vectors: finished shards are read, missing ones computed, each handed on at once.

A run that was stopped, by anything, goes on from its last finished shard with the plan it began with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from retbench.cards.method import Role
from retbench.cards.user_config import require_disk_space
from retbench.corpora.texts import Texts, join_fields
from retbench.encoders.batch_plan import SHARD_ROWS, Plan
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import Later, Piece, Survey, Workers
from retbench.engines import memory
from retbench.errors import BadVectorError, DataError, ResourceError, ShardNotWrittenError
from retbench.store.digest import compute_digest
from retbench.store.shard_store import ShardStore, VectorBlock
from retbench.store.vector_formats import compute_row_bytes

REMOVE = "remove that folder and run again"

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
        return compute_digest(
            {**facts, "fields": self.fields if self.role == "document" else None, "texts": self.texts.fingerprint}
        )

    def strings(self) -> Iterator[str]:
        """The texts as the model reads them; a query has no title."""
        fields = self.fields if self.role == "document" else ("text",)
        return (join_fields(row, fields) for row in self.texts)


def embed(workers: Workers, job: Job, store: ShardStore, on_batch: OnBatch) -> Iterator[VectorBlock]:
    """Every row of the job, shard by shard. A finished store needs neither the model nor a tokenizer."""
    with store.lock():
        work = Work(workers, job, store, on_batch)
        complete, rows = store.is_complete() and store.has_plan(), 0
        missing = set() if complete else work.begin()
        for block in work.blocks(store.load_or_create_plan(dict)["shards"], missing):
            rows += len(block.rows)
            yield block
        if rows != len(job.texts):
            raise DataError(f"{store.folder} gave {rows} of {len(job.texts)} vectors", REMOVE)
        if not complete:
            store.write_manifest(workers.facts())


@dataclass
class Work:
    """A job under way; it is tokenised and planned when the first shard is missing."""

    workers: Workers
    job: Job
    store: ShardStore
    on_batch: OnBatch
    left: int = field(default=0, init=False)  # tokens of the shards that are still missing

    @cached_property
    def tokens(self) -> TokenizedTexts:
        """Every text as token ids."""
        return self.workers.prepare(self.job.strings(), self.job.role)

    @cached_property
    def survey(self) -> Survey:
        """What the plan must know of whoever computes it."""
        longest = self.tokens.select(np.array([self.tokens.lengths.argmax()]))
        return self.workers.survey(longest, self.job.budget)

    @cached_property
    def saved(self) -> dict[str, Any]:
        """The plan's facts as they were written at the first start."""
        self.workers.share(self.store)
        saved = self.store.load_or_create_plan(self._facts)
        self.workers.share(self.store)
        return saved

    @cached_property
    def plan(self) -> Plan:
        """The plan that was saved at the first start, else a new one, now saved."""
        saved = self.saved
        memory.use_threads(self.threads)  # search is a part of the plan's bits, too
        plan = Plan.of(self.tokens.lengths, saved["budget"], saved["shard_rows"])
        if plan.fingerprint != saved["fingerprint"]:
            raise DataError(f"{self.store.folder} was planned for other tokens", REMOVE)
        return plan

    @property
    def threads(self) -> int:
        """Threads of each worker; the first stores did not say it."""
        return int(self.saved.get("threads", memory.threads()))

    def _facts(self) -> dict[str, Any]:
        tokens, found = self.tokens, self.survey
        plan = Plan.of(tokens.lengths, found.budget, self.job.shard_rows)
        return {
            "rows": len(self.job.texts),
            "tokens": len(tokens.flat),
            "longest": int(tokens.lengths.max()),
            "truncated": tokens.truncated,
            "empty": tokens.empty,
            "threads": found.threads,
            "kernel": found.kernel,
            "device": found.device,
            "budget": found.budget,
            "shard_rows": self.job.shard_rows,
            "shards": plan.shards,
            "fingerprint": plan.fingerprint,
        }

    def begin(self) -> set[int]:
        """Make or take up the plan, and refuse early what the disk cannot hold; the shards that are missing."""
        missing = self._missing()
        if missing:
            self._check_device()
        self.left = sum(int(self.tokens.lengths[self.plan.rows(shard)].sum()) for shard in missing)
        require_disk_space(self.store.folder, self._bytes(missing))
        return set(missing)

    def _check_device(self) -> None:
        """One store, one kind of device: another one sums in another order. The first stores knew a CPU alone."""
        begun, here = self.saved.get("device", "cpu"), self.survey.device
        if begun != here:
            raise DataError(
                f"{self.store.folder} was begun on {begun}, and this run computes on {here}",
                f"set RETBENCH_DEVICE={begun} to go on, or remove that folder to begin anew on {here}",
            )

    def _missing(self) -> list[int]:
        return [shard for shard in range(self.plan.shards) if not self.store.has_shard(shard)]

    def _bytes(self, shards: list[int]) -> float:
        rows = sum(len(self.plan.rows(shard)) for shard in shards)
        return rows and rows * compute_row_bytes(self.survey.dimension, self.store.vector_dtype)

    def blocks(self, shards: int, missing: set[int]) -> Iterator[VectorBlock]:
        """Every shard in turn; what is missing is begun at once, so that many can work at it."""
        under_way = {shard: self._start(shard) for shard in sorted(missing)}
        try:
            for shard in range(shards):
                block = None if shard in under_way else self.store.read_shard(shard)
                if block:
                    self.on_batch(len(block.rows), len(self.job.texts), 0, self.left)
                yield block or self._made(shard, under_way.pop(shard) if shard in under_way else self._start(shard))
        finally:
            for later in under_way.values():
                later.cancel()

    def _start(self, shard: int) -> Later:
        return self.workers.start(lambda: self.piece(shard), self.store, self._tell)

    def piece(self, shard: int) -> Piece:
        """A shard as whoever computes it needs it."""
        rows = self.plan.rows(shard)
        sizes = tuple(len(batch) for batch in self.plan.batches(shard))
        return Piece(shard, self.job.role, rows, self.tokens.select(rows), sizes, self.threads)

    def _tell(self, texts: int, tokens: int) -> None:
        self.left = max(0, self.left - tokens)  # a damaged shard was not expected
        self.on_batch(texts, len(self.job.texts), tokens, self.left)

    def _made(self, shard: int, later: Later) -> VectorBlock:
        try:
            block = later.result()
        except BadVectorError as bad:
            name = self.job.texts[bad.row].id
            raise DataError(
                f"the vector of {self.job.role} {name!r} is zero or not a number",
                "try --set dtype=float32; if it stays, the weights are damaged",
            ) from bad
        except ShardNotWrittenError as problem:
            missing = self._missing()
            raise ResourceError(
                problem.cause,
                f"make room for {self._bytes(missing) / 1e6:,.1f} MB, then run the same command: "
                f"{self.plan.shards - len(missing)} of {self.plan.shards} shards are kept",
            ) from problem
        if block is None:
            raise DataError(
                f"shard {shard} of {self.store.folder} was damaged as soon as it was written",
                "retbench doctor shows the disk; then run the same command",
            )
        return block
