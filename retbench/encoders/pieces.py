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
from retbench.encoders.dense import DenseEncoder
from retbench.encoders.wording import Tokens
from retbench.engines import memory
from retbench.engines.device import device
from retbench.errors import ResourceError
from retbench.store.shards import Block, Store

log = logging.getLogger(__name__)

Tell = Callable[[int, int], None]  # texts and tokens that were just computed


@dataclass(frozen=True)
class Piece:
    """One shard to be computed: its rows, and their tokens in the same order, batch after batch."""

    shard: int
    role: Role
    rows: np.ndarray
    tokens: Tokens
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
    block: Block
    tokens: int
    seconds: float
    split_batches: int


class UnstoredError(ResourceError):
    """A shard was computed and could not be written; whoever knows the plan says how much room it takes."""


class BadVectorError(Exception):
    """A vector is zero or not a number; whoever has the texts names the one."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class Sink(Protocol):
    """Where a finished shard is left: a store, or storage that other machines reach."""

    def write(self, shard: int, block: Block, tokens: int, seconds: float, split_batches: int = 0) -> Block:
        """Store it; the block as it will be read from now on."""
        ...


class Later(Protocol):
    """A shard under way."""

    def result(self) -> Block | None:
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

    def share(self, store: Store) -> None:
        """One plan for all who work at the same vectors: bring it or hand it on."""
        ...

    def prepare(self, texts: Iterable[str], role: Role) -> Tokens:
        """Texts as token ids, cut to the role's limit."""
        ...

    def survey(self, longest: Tokens, ceiling: int) -> Survey:
        """What a plan must know: `longest` is the one text that needs most, `ceiling` the most tokens of a batch."""
        ...

    def start(self, piece: Callable[[], Piece], store: Store, tell: Tell) -> Later:
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
        return device().type, memory.threads()

    def reach(self) -> float | None:
        """Tokens a second that the matrix products alone would allow."""
        return self.encoder.reach()

    def share(self, store: Store) -> None:
        """Nobody else is told."""

    def prepare(self, texts: Iterable[str], role: Role) -> Tokens:
        """Texts as token ids, cut to the role's limit."""
        return self.encoder.prepare(texts, role)

    def survey(self, longest: Tokens, ceiling: int) -> Survey:
        """What a plan must know of this process."""
        return survey(self.encoder, longest, ceiling)

    def start(self, piece: Callable[[], Piece], store: Store, tell: Tell) -> Later:
        """Nothing happens before the result is asked for."""
        return _Now(lambda: keep(compute(self.encoder, piece(), tell), store))

    def facts(self) -> dict[str, Any]:
        """For the record: peak memory."""
        return {"peak_memory_mb": round(memory.peak_mb(), 1)}


@dataclass(frozen=True)
class _Now:
    result: Callable[[], Block | None]

    def cancel(self) -> None:
        """What has not begun needs no stopping."""


def survey(encoder: DenseEncoder, longest: Tokens, ceiling: int) -> Survey:
    """What a plan must know of this process."""
    budget = memory.token_budget(
        lambda texts: encoder.vectors(longest.take(np.zeros(texts, dtype=int))), int(longest.lengths[0]), ceiling
    )
    return Survey(encoder.kernel, encoder.dimension, budget, memory.threads(), device().type)


def compute(encoder: DenseEncoder, piece: Piece, tell: Tell) -> Made:
    """Run a piece's batches."""
    memory.use_threads(piece.threads)
    started, first, split, parts = time.perf_counter(), 0, 0, []
    for size in piece.sizes:
        batch = piece.tokens.take(np.arange(first, first + size))
        vectors, halved = _vectors(encoder, batch, piece.role)
        _check(piece.rows[first : first + size], vectors)
        parts.append(vectors)
        first, split = first + size, split + halved
        tell(size, len(batch.flat))
    seconds = time.perf_counter() - started
    return Made(piece.shard, Block(piece.rows, np.concatenate(parts)), len(piece.tokens.flat), seconds, split)


def keep(made: Made, store: Sink) -> Block:
    """Store what was computed."""
    try:
        return store.write(made.shard, made.block, made.tokens, made.seconds, made.split_batches)
    except ResourceError as problem:
        raise UnstoredError(problem.cause, problem.next_step) from problem


def _vectors(encoder: DenseEncoder, batch: Tokens, role: Role) -> tuple[np.ndarray, int]:
    """One batch, and how often it was halved: only when memory really ran out."""
    try:
        return encoder.vectors(batch), 0
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
    halves = [_vectors(encoder, batch.take(half), role) for half in np.array_split(np.arange(len(batch)), 2)]
    return np.concatenate([vectors for vectors, _ in halves]), 1 + sum(split for _, split in halves)


def _check(rows: np.ndarray, vectors: np.ndarray) -> None:
    """A vector of length one has neither a number that is none nor zeros alone."""
    bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
    if len(bad):
        raise BadVectorError(int(rows[bad[0]]))
