"""Pieces: one shard as whoever computes it needs it, its token ids and how they are cut into batches.

A piece knows nothing of the collection it came from, so it is computed here, in another process or on another machine
by the same lines, and on CPUs gives the same bits wherever threads are those of its plan.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from retbench.cards.method import Role
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.engines import memory
from retbench.engines.device import get_device
from retbench.errors import BadVectorError, ResourceError, ShardNotWrittenError
from retbench.store.shard_store import ShardStore, VectorBlock

log = logging.getLogger(__name__)

Tell = Callable[[int, int], None]  # texts and tokens that were just computed


@dataclass(frozen=True)
class Piece:
    """One shard to be computed: its rows, and their tokens in the same order, batch after batch."""

    shard: int
    role: Role
    rows: np.ndarray
    tokens: TokenizedTexts
    sizes: tuple[int, ...]  # rows of each batch
    threads: int


@dataclass(frozen=True)
class Survey:
    """What a plan must know of whoever will compute it."""

    kernel: str
    dimension: int
    budget: int
    threads: int
    device: str = "cpu"  # its kind


@dataclass(frozen=True)
class Made:
    """A piece that was computed, and what it took."""

    shard: int
    block: VectorBlock
    tokens: int
    seconds: float
    split_batches: int


class Sink(Protocol):
    """Where a finished shard is left: a store, or storage that other machines reach."""

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Store it; the block as it will be read from now on."""
        ...


class Later(Protocol):
    """A shard under way."""

    def result(self) -> VectorBlock | None:
        """Its vectors, as soon as they are stored; none where the disk lost them at once."""
        ...

    def cancel(self) -> Any:
        """Do not begin it any more."""
        ...


class Workers(Protocol):
    """Whoever computes the shards of one encoder: this process, several, or a cluster."""

    @property
    def count(self) -> int:
        """How many work at once."""
        ...

    @property
    def device(self) -> tuple[str, int]:
        """The kind of device each has, and its threads."""
        ...

    def reach(self) -> float | None:
        """Tokens a second that the matrix products alone would allow; none where that is not known."""
        ...

    def share(self, store: ShardStore) -> None:
        """One plan for all who work at the same vectors: bring it or hand it on."""
        ...

    def prepare(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit."""
        ...

    def survey(self, longest: TokenizedTexts, ceiling: int) -> Survey:
        """What a plan must know: `longest` is the one text that needs most, `ceiling` the most tokens of a batch."""
        ...

    def start(self, piece: Callable[[], Piece], store: ShardStore, tell: Tell) -> Later:
        """Have a piece computed and stored."""
        ...

    def facts(self) -> dict[str, Any]:
        """For the record: peak memory, and how many worked where it was more than one."""
        ...


@dataclass
class Alone:
    """This process, which loads the model when the first piece is missing and computes when it is asked."""

    make: Callable[[], DenseEncoder]
    count: int = 1

    @cached_property
    def encoder(self) -> DenseEncoder:
        """The encoder."""
        return self.make()

    @property
    def device(self) -> tuple[str, int]:
        """The kind of device, and its threads."""
        return get_device().type, memory.threads()

    def reach(self) -> float | None:
        """Tokens a second that the matrix products alone would allow."""
        return self.encoder.peak_throughput()

    def share(self, store: ShardStore) -> None:
        """Nobody else is told."""

    def prepare(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit."""
        return self.encoder.tokenize(texts, role)

    def survey(self, longest: TokenizedTexts, ceiling: int) -> Survey:
        """What a plan must know of this process."""
        return survey(self.encoder, longest, ceiling)

    def start(self, piece: Callable[[], Piece], store: ShardStore, tell: Tell) -> Later:
        """Nothing happens before the result is asked for."""
        return _Now(lambda: keep(compute(self.encoder, piece(), tell), store))

    def facts(self) -> dict[str, Any]:
        """For the record: peak memory."""
        return {"peak_memory_mb": round(memory.peak_mb(), 1)}


@dataclass(frozen=True)
class _Now:
    result: Callable[[], VectorBlock | None]

    def cancel(self) -> None:
        """What has not begun needs no stopping."""


def survey(encoder: DenseEncoder, longest: TokenizedTexts, ceiling: int) -> Survey:
    """What a plan must know of this process."""
    budget = memory.token_budget(
        lambda texts: encoder.encode(longest.select(np.zeros(texts, dtype=int))), int(longest.lengths[0]), ceiling
    )
    return Survey(encoder.kernel, encoder.dimension, budget, memory.threads(), get_device().type)


def compute(encoder: DenseEncoder, piece: Piece, tell: Tell) -> Made:
    """Run a piece's batches."""
    memory.use_threads(piece.threads)
    started, first, split, parts = time.perf_counter(), 0, 0, []
    for size in piece.sizes:
        batch = piece.tokens.select(np.arange(first, first + size))
        vectors, halved = _vectors(encoder, batch, piece.role)
        _check(piece.rows[first : first + size], vectors)
        parts.append(vectors)
        first, split = first + size, split + halved
        tell(size, len(batch.flat))
    seconds = time.perf_counter() - started
    return Made(piece.shard, VectorBlock(piece.rows, np.concatenate(parts)), len(piece.tokens.flat), seconds, split)


def keep(made: Made, store: Sink) -> VectorBlock:
    """Store what was computed."""
    try:
        return store.write_shard(made.shard, made.block, made.tokens, made.seconds, made.split_batches)
    except ResourceError as problem:
        raise ShardNotWrittenError(problem.cause, problem.next_step) from problem


def _vectors(encoder: DenseEncoder, batch: TokenizedTexts, role: Role) -> tuple[np.ndarray, int]:
    """One batch, and how often it was halved: only when memory really ran out."""
    try:
        return encoder.encode(batch), 0
    except (RuntimeError, MemoryError) as problem:
        if not memory.ran_out(problem):
            raise
        if len(batch) == 1:
            raise ResourceError(
                f"one {role} of {len(batch.flat)} tokens does not fit into memory beside the model",
                "give a smaller --set max_length, --set dtype=bfloat16, or RETBENCH_DEVICE=cpu",
            ) from problem
    log.warning("out of memory at %d texts, %d tokens: run in two halves", len(batch), len(batch.flat))
    memory.release()
    halves = [_vectors(encoder, batch.select(half), role) for half in np.array_split(np.arange(len(batch)), 2)]
    return np.concatenate([vectors for vectors, _ in halves]), 1 + sum(split for _, split in halves)


def _check(rows: np.ndarray, vectors: np.ndarray) -> None:
    """A vector of length one has neither a number that is none nor zeros alone."""
    bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
    if len(bad):
        raise BadVectorError(int(rows[bad[0]]))
