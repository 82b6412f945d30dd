"""Shard tasks: one shard to embed, as token ids cut into batches, and what computes it.

A `ShardTask` is a value without a reference to its collection. This process, another process and another machine
compute it by the same code; on CPUs the vectors are bit-identical where the number of threads is that of the plan.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from typing import Any, Protocol, runtime_checkable

import numpy as np

from retbench.cards.method import Role, VectorKind
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.text_encoder import EncodedTexts, TextEncoder, find_bad_text, join_parts
from retbench.engines import memory
from retbench.engines.device import disable_tf32, get_device
from retbench.errors import BadVectorError, ResourceError, ShardNotWrittenError
from retbench.store.shard_store import ShardStore, VectorBlock

OnBatch = Callable[[int, int], None]  # texts and tokens just computed
OVERLAPPED_DEVICES = ("cuda",)  # that compute the next shard and the next batch while the host handles the last one


@dataclass(frozen=True)
class ShardTask:
    """One shard to compute: its rows, and their tokens in the same order, batch after batch."""

    shard: int
    role: Role
    rows: np.ndarray
    tokens: TokenizedTexts
    batch_sizes: tuple[int, ...]  # rows of each batch
    threads: int


@dataclass(frozen=True)
class EncoderProfile:
    """The properties of a loaded encoder and its device that a batch plan depends on."""

    kernel: str
    dimension: int
    budget: int
    threads: int
    device: str = "cpu"  # its type
    dtype: str = "unknown"  # of the loaded weights
    shard_tokens: int | None = None  # tokens of about half a minute; None: not known
    vector_kind: VectorKind = "dense"


@dataclass(frozen=True)
class ComputedShard:
    """The vectors of a shard and their cost."""

    shard: int
    block: VectorBlock
    tokens: int
    seconds: float
    split_batches: int


class ShardWriter(Protocol):
    """The destination of a finished shard: a local store, or storage that other machines reach."""

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Store the shard; return the block as later reads return it."""
        ...


class PendingShard(Protocol):
    """A shard that was handed to a worker."""

    def result(self) -> VectorBlock | None:
        """Wait for the stored vectors; None if the disk damaged them."""
        ...

    def cancel(self) -> Any:
        """Do not start it if it has not started."""
        ...


class ShardWorkers(Protocol):
    """The workers that compute the shards of one encoder: this process, several processes, or a cluster."""

    @property
    def count(self) -> int:
        """The number of workers."""
        ...

    @property
    def queue_size(self) -> int:
        """How many shards to hand over before the first one is read."""
        ...

    @property
    def device(self) -> tuple[str, int]:
        """The device type and the threads of each worker."""
        ...

    def peak_throughput(self) -> float | None:
        """Tokens per second that the matrix products alone would allow; None if unknown."""
        ...

    def sync_plan(self, store: ShardStore) -> None:
        """Use one plan on all machines: copy it to or from the shared storage."""
        ...

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Return the token ids, cut to the role's limit."""
        ...

    def measure_profile(self, longest: TokenizedTexts, max_tokens: int) -> EncoderProfile:
        """Measure a worker. `longest` is the text with most tokens, `max_tokens` the upper bound of a batch."""
        ...

    def start(self, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> PendingShard:
        """Hand a shard over to be computed and stored."""
        ...

    def collect_facts(self) -> dict[str, Any]:
        """Return facts for the record: peak memory, and the number of workers if there are several."""
        ...


@dataclass
class InProcessWorker:
    """This process. It loads the model when the first shard is missing.

    A CPU computes a shard when it is read. For a GPU a thread computes one shard ahead, so that the GPU works while the
    shard before is written and searched.
    """

    load_encoder: Callable[[], TextEncoder]
    count: int = 1

    @property
    def queue_size(self) -> int:
        """How many shards to hand over before the first one is read."""
        return 2 if is_overlapped(self.encoder) else 1

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded once."""
        return self.load_encoder()

    @cached_property
    def compute_thread(self) -> ThreadPoolExecutor:
        """The thread that computes ahead, on this thread's GPU; all that this thread gave the GPU so far is done."""
        import torch

        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
            return ThreadPoolExecutor(1)
        torch.cuda.synchronize()
        return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))

    @property
    def device(self) -> tuple[str, int]:
        """The device type and its threads."""
        return get_device().type, memory.get_thread_count()

    def peak_throughput(self) -> float | None:
        """Tokens per second that the matrix products alone would allow."""
        return self.encoder.peak_throughput()

    def sync_plan(self, store: ShardStore) -> None:
        """Do nothing: no other machine uses the plan."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Return the token ids, cut to the role's limit."""
        return self.encoder.tokenize(texts, role)

    def measure_profile(self, longest: TokenizedTexts, max_tokens: int) -> EncoderProfile:
        """Measure the encoder in this process."""
        return measure_encoder(self.encoder, longest, max_tokens)

    def start(self, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> PendingShard:
        """Return the shard; it is computed when its result is read, or by the thread."""
        if not is_overlapped(self.encoder):
            return InProcessShard(self, task, store, on_batch)
        stop = Event()

        def report(texts: int, tokens: int) -> None:
            if stop.is_set():
                raise CancelledError
            on_batch(texts, tokens)

        return OverlappedShard(self.compute_thread.submit(compute_shard, self.encoder, task, report), stop, store)

    def collect_facts(self) -> dict[str, Any]:
        """Return the peak memory for the record."""
        return {"peak_memory_mb": round(memory.get_peak_memory_mb(), 1)}


@dataclass(frozen=True)
class InProcessShard:
    """A shard that is computed when its result is read."""

    worker: InProcessWorker
    task: ShardTask
    store: ShardStore
    on_batch: OnBatch

    def result(self) -> VectorBlock | None:
        """Compute and store the shard."""
        return write_computed_shard(compute_shard(self.worker.encoder, self.task, self.on_batch), self.store)

    def cancel(self) -> None:
        """Do nothing: it has not started."""


@dataclass(frozen=True)
class OverlappedShard:
    """A shard that the thread computes; it is stored by the thread that reads it."""

    future: Future[ComputedShard]
    stop: Event
    store: ShardStore

    def result(self) -> VectorBlock | None:
        """Wait for the shard and store it."""
        try:
            computed = self.future.result()
        except BaseException:  # Ctrl-C too: the thread must not go on
            self.cancel()
            raise
        return write_computed_shard(computed, self.store)

    def cancel(self) -> None:
        """Stop after the batch that is being computed."""
        self.stop.set()
        if not self.future.cancel():
            wait([self.future])


@runtime_checkable
class OverlappingEncoder(Protocol):
    """An encoder that can begin a batch before the vectors of the last one have arrived."""

    def start_encoding(self, batch: TokenizedTexts) -> Callable[[], EncodedTexts]:
        """Begin to encode one batch; the returned function waits for its vectors."""
        ...


def is_overlapped(encoder: TextEncoder) -> bool:
    """Whether the device computes ahead for this encoder. Other engines may not run in another thread."""
    return isinstance(encoder, OverlappingEncoder) and get_device().type in OVERLAPPED_DEVICES


def measure_encoder(encoder: TextEncoder, longest: TokenizedTexts, max_tokens: int) -> EncoderProfile:
    """Measure the encoder's token budget and collect what else a plan depends on."""
    budget = memory.compute_token_budget(
        lambda texts: encoder.encode(longest.select(np.zeros(texts, dtype=int))), int(longest.lengths[0]), max_tokens
    )
    threads, device, dtype = memory.get_thread_count(), get_device().type, encoder.computed_dtype
    return EncoderProfile(
        encoder.kernel, encoder.dimension, budget, threads, device, dtype, encoder.shard_tokens,
        encoder.spec.method.vector_kind,
    )  # fmt: skip


@disable_tf32()  # search may turn it off at any moment, for all threads
def compute_shard(encoder: TextEncoder, task: ShardTask, on_batch: OnBatch) -> ComputedShard:
    """Encode the batches of a shard. A batch that runs out of memory is split in halves, as often as needed."""
    memory.set_thread_count(task.threads)
    started, parts = time.perf_counter(), []
    for part, vectors in _encode_batches(encoder, task):
        if (bad := find_bad_text(vectors)) is not None:
            raise BadVectorError(int(task.rows[part][bad]))
        parts.append(vectors)
        on_batch(len(part), int(task.tokens.lengths[part].sum()))
    seconds = time.perf_counter() - started
    block = join_parts(task.rows, parts)
    return ComputedShard(task.shard, block, len(task.tokens.flat), seconds, len(parts) - len(task.batch_sizes))


def _encode_batches(encoder: TextEncoder, task: ShardTask) -> Iterator[tuple[np.ndarray, EncodedTexts]]:
    """Yield the positions of each batch, or part of one, and its vectors. A GPU has begun the next batch by then."""
    ahead = 1 if is_overlapped(encoder) else 0
    begun: deque[tuple[np.ndarray, Callable[[], EncodedTexts]]] = deque()
    for positions in _list_batches(task):
        for batch in memory.compute_in_halves(positions, lambda rows: _start_rows(encoder, task, rows)):
            begun.append(batch)
            if len(begun) > ahead:
                part, get_vectors = begun.popleft()
                yield part, get_vectors()
    for part, get_vectors in begun:
        yield part, get_vectors()


def _list_batches(task: ShardTask) -> list[np.ndarray]:
    """Return the positions in the shard of each batch."""
    return np.split(np.arange(len(task.rows)), np.cumsum(task.batch_sizes)[:-1])


def _start_rows(encoder: TextEncoder, task: ShardTask, positions: np.ndarray) -> Callable[[], EncodedTexts]:
    batch = task.tokens.select(positions)
    try:
        if isinstance(encoder, OverlappingEncoder) and is_overlapped(encoder):
            return encoder.start_encoding(batch)
        vectors = encoder.encode(batch)
        return lambda: vectors
    except (RuntimeError, MemoryError) as problem:
        if len(batch) > 1 or not memory.is_out_of_memory(problem):
            raise
        raise ResourceError(
            f"one {task.role} of {len(batch.flat)} tokens does not fit into memory beside the model",
            "give a smaller --set max_length, --set dtype=bfloat16, or RETBENCH_DEVICE=cpu",
        ) from problem


def write_computed_shard(shard: ComputedShard, store: ShardWriter) -> VectorBlock:
    """Store a computed shard."""
    try:
        return store.write_shard(shard.shard, shard.block, shard.tokens, shard.seconds, shard.split_batches)
    except ResourceError as problem:
        raise ShardNotWrittenError(problem.cause, problem.next_step) from problem
