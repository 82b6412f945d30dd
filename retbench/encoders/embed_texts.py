"""From texts to stored vectors: finished shards are read, missing shards are computed, and each is yielded at once.

An interrupted run continues after its last finished shard with the plan it started with. Threads read finished shards
ahead and compare their checksums, which takes longer than a GPU needs to search them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from retbench.cards.method import Role
from retbench.corpora.texts import Texts, read_inputs
from retbench.encoders.batch_plan import SHARD_ROWS, BatchPlan
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import EncoderProfile, PendingShard, ShardTask, ShardWorkers
from retbench.encoders.text_encoder import estimate_stored_bytes
from retbench.engines import memory
from retbench.errors import BadVectorError, DataError, ResourceError, ShardNotWrittenError
from retbench.store.digest import compute_digest
from retbench.store.shard_store import ShardStore, VectorBlock
from retbench.system.user_config import require_disk_space

REMOVE_FOLDER = "remove that folder and run again"
READERS = max(1, min(8, (os.cpu_count() or 1) // 2))  # threads that read finished shards, each one shard ahead

OnProgress = Callable[[int, int, int, int], None]  # texts done, all texts, tokens computed, tokens left


@dataclass(frozen=True)
class EmbeddingJob:
    """The queries or the documents of a collection, to be embedded into one store."""

    texts: Texts
    fields: tuple[str, ...]
    role: Role
    budget: int
    shard_rows: int = SHARD_ROWS

    def compute_key(self, facts: dict[str, Any]) -> str:
        """Return the name of these vectors; `facts` describe the encoder."""
        images = {"images": "prefer"} if self.texts.prefers_images else {}
        fields = self.fields if self.role == "document" else None
        return compute_digest({**facts, "fields": fields, "texts": self.texts.fingerprint, **images})

    def join_texts(self) -> Iterable[str]:
        """Return the texts as the model reads them, with their images; a query has no title."""
        return read_inputs(self.texts, self.fields if self.role == "document" else ("text",))


def embed_texts(
    workers: ShardWorkers, job: EmbeddingJob, store: ShardStore, on_progress: OnProgress
) -> Iterator[VectorBlock]:
    """Yield the vectors of all texts, shard by shard. A complete store needs neither the model nor a tokenizer."""
    with store.lock():
        run = EmbeddingRun(workers, job, store, on_progress)
        was_complete, rows = store.is_complete() and store.has_plan(), 0
        if not was_complete:
            run.plan_missing_shards()
        try:
            for shard in range(store.load_or_create_plan(dict)["shards"]):
                run.fill_queue()
                block = run.read_finished(shard)
                if block is None:
                    with run.translate_errors(shard):
                        block = run.take_pending(shard).result()
                block = run.require_intact(shard, block)
                rows += len(block.rows)
                yield block
        finally:
            run.cancel()
        if rows != len(job.texts):
            raise DataError(f"{store.folder} gave {rows} of {len(job.texts)} vectors", REMOVE_FOLDER)
        if not was_complete:
            store.write_manifest(workers.collect_facts())


@dataclass
class EmbeddingRun:
    """A running embedding job. It tokenizes the texts and plans batches only if a shard is missing."""

    workers: ShardWorkers
    job: EmbeddingJob
    store: ShardStore
    on_progress: OnProgress
    tokens_left: int = field(default=0, init=False)  # of the missing shards
    missing: deque[int] = field(default_factory=deque, init=False)  # shards not yet handed to a worker
    pending: dict[int, PendingShard] = field(default_factory=dict, init=False)
    reads: dict[int, Future[VectorBlock | None]] = field(default_factory=dict, init=False)
    # of finished shards; a pool starts no thread before its first task
    readers: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, READERS), init=False)

    @cached_property
    def tokens(self) -> TokenizedTexts:
        """All texts as token ids."""
        return self.workers.tokenize(self.job.join_texts(), self.job.role)

    @cached_property
    def profile(self) -> EncoderProfile:
        """The properties of the workers that the plan depends on."""
        longest = self.tokens.select(np.array([self.tokens.lengths.argmax()]))
        return self.workers.measure_profile(longest, self.job.budget)

    @cached_property
    def saved_plan(self) -> dict[str, Any]:
        """The plan's facts, saved by the first run."""
        self.workers.sync_plan(self.store)
        saved = self.store.load_or_create_plan(self._describe_plan)
        self.workers.sync_plan(self.store)
        return saved

    @cached_property
    def plan(self) -> BatchPlan:
        """The plan of the first run; this run's own, now saved, if it is the first."""
        saved = self.saved_plan
        memory.set_thread_count(self.threads)  # the bits of the search depend on it too
        plan = BatchPlan.build(self.tokens.lengths, saved["budget"], saved["shard_rows"], saved.get("shard_tokens"))
        if plan.fingerprint != saved["fingerprint"]:
            raise DataError(f"{self.store.folder} was planned for other tokens", REMOVE_FOLDER)
        return plan

    @property
    def threads(self) -> int:
        """Threads of each worker; the plans of early versions do not contain it."""
        return int(self.saved_plan.get("threads", memory.get_thread_count()))

    def _describe_plan(self) -> dict[str, Any]:
        tokens, profile = self.tokens, self.profile
        unknown = {} if tokens.unknown is None else {"unknown": tokens.unknown}
        plan = BatchPlan.build(tokens.lengths, profile.budget, self.job.shard_rows, profile.shard_tokens)
        return {
            "rows": len(self.job.texts),
            "tokens": len(tokens.flat),
            "longest": int(tokens.lengths.max()),
            "truncated": tokens.truncated,
            "empty": tokens.empty,
            **unknown,
            "threads": profile.threads,
            "kernel": profile.kernel,
            "dtype": profile.dtype,
            "device": profile.device,
            "budget": profile.budget,
            "shard_rows": self.job.shard_rows,
            "shard_tokens": profile.shard_tokens,
            "dimension": profile.dimension,
            "shards": plan.shards,
            "fingerprint": plan.fingerprint,
        }

    def plan_missing_shards(self) -> None:
        """Create or load the plan and list the missing shards; raise early if the disk has no room for them."""
        missing = self._list_missing()
        if missing:
            self._check_device()
        self.tokens_left = sum(int(self.tokens.lengths[self.plan.get_shard_rows(shard)].sum()) for shard in missing)
        require_disk_space(self.store.folder, self._compute_bytes(missing))
        self.missing.extend(missing)

    def _check_device(self) -> None:
        """Refuse a store of another device type, which adds numbers in another order. Early plans are of a CPU."""
        saved, current = self.saved_plan.get("device", "cpu"), self.profile.device
        if saved != current:
            raise DataError(
                f"{self.store.folder} was started on {saved}, and this run computes on {current}",
                f"set RETBENCH_DEVICE={saved} to continue, or remove that folder to start again on {current}",
            )

    def _list_missing(self) -> list[int]:
        return [shard for shard in range(self.plan.shards) if not self.store.has_shard(shard)]

    def _compute_bytes(self, shards: list[int]) -> float:
        if not shards:
            return 0
        rows = np.concatenate([self.plan.get_shard_rows(shard) for shard in shards])
        return estimate_stored_bytes(
            self.profile.vector_kind, self.profile.dimension, self.store.vector_dtype, len(rows),
            int(self.tokens.lengths[rows].sum()),
        )  # fmt: skip

    def fill_queue(self) -> None:
        """Hand missing shards to the workers, as many as they may have waiting."""
        while self.missing and len(self.pending) < self.workers.queue_size:
            shard = self.missing.popleft()
            self.pending[shard] = self._start(shard)

    def read_finished(self, shard: int) -> VectorBlock | None:
        """Read a stored shard; None if it must be computed."""
        self._read_ahead(shard)
        block = self.reads.pop(shard).result() if shard in self.reads else None
        if block:
            self.on_progress(len(block.rows), len(self.job.texts), 0, self.tokens_left)
        return block

    def _read_ahead(self, shard: int) -> None:
        """Let the threads read this shard and the next ones, as far as they are finished."""
        for number in range(shard, shard + READERS + 1):
            if number not in self.reads and number not in self.pending and self.store.has_shard(number):
                self.reads[number] = self.readers.submit(self.store.read_shard, number)

    def take_pending(self, shard: int) -> PendingShard:
        """Return a shard that a worker has; a shard that was stored but damaged is handed over now."""
        return self.pending.pop(shard) if shard in self.pending else self._start(shard)

    def _start(self, shard: int) -> PendingShard:
        return self.workers.start(self.build_task(shard), self.store, self._report_batch)

    def build_task(self, shard: int) -> ShardTask:
        """Build the task of a shard."""
        rows = self.plan.get_shard_rows(shard)
        batch_sizes = tuple(len(batch) for batch in self.plan.iterate_batches(shard))
        return ShardTask(shard, self.job.role, rows, self.tokens.select(rows), batch_sizes, self.threads)

    def _report_batch(self, texts: int, tokens: int) -> None:
        self.tokens_left = max(0, self.tokens_left - tokens)  # a damaged shard was not counted
        self.on_progress(texts, len(self.job.texts), tokens, self.tokens_left)

    def cancel(self) -> None:
        """Cancel the shards that have not started."""
        self.readers.shutdown(cancel_futures=True)
        for shard in self.pending.values():
            shard.cancel()

    @contextmanager
    def translate_errors(self, shard: int) -> Iterator[None]:
        """Name the document of a bad vector, and the room that a full disk needs."""
        try:
            yield
        except BadVectorError as bad:
            name = self.job.texts[bad.row].id
            raise DataError(
                f"the vector of {self.job.role} {name!r} is zero or not a number",
                "try --set dtype=float32; if it stays, the weights are damaged",
            ) from bad
        except ShardNotWrittenError as problem:
            missing = self._list_missing()
            raise ResourceError(
                problem.cause,
                f"make room for {self._compute_bytes(missing) / 1e6:,.1f} MB, then run the same command: "
                f"{self.plan.shards - len(missing)} of {self.plan.shards} shards are kept",
            ) from problem

    def require_intact(self, shard: int, block: VectorBlock | None) -> VectorBlock:
        """Raise if the shard was damaged while it was written."""
        if block is None:
            raise DataError(
                f"shard {shard} of {self.store.folder} was damaged as soon as it was written",
                "retbench doctor shows the disk; then run the same command",
            )
        return block
