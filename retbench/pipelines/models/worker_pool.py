"""Workers: one model each, on a device of its own, given pieces one after the other.

A worker is the same few lines whether it is a process here (`devices.py`) or an actor on a cluster (`on_ray.py`). The
team shares the pieces out: whoever is free takes the next one, and what a worker leaves unfinished when it dies goes to
the others.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from retbench.cards.engine import Engine
from retbench.cards.method import Role
from retbench.cards.model import ModelCard
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.encoders.shard_tasks import Piece, Sink, Survey, Tell, compute, keep, survey
from retbench.engines import backbone, fingerprints, memory, weights
from retbench.errors import (
    BadVectorError,
    DataError,
    ResourceError,
    RetbenchError,
    UsageError,
    convert_to_resource_error,
)
from retbench.pipelines.models.model import ResolvedModel
from retbench.store.remote_store import RemoteStorage
from retbench.store.shard_store import ShardStore, VectorBlock

log = logging.getLogger(__name__)

ENGINES = ("transformers", "sentence-transformers")


@dataclass(frozen=True)
class Model:
    """What a worker loads; `content` is given where it may find other weights than the ones that are meant."""

    card: ModelCard
    local: weights.LocalWeights
    engine: Engine
    content: str | None = None

    def candidate(self) -> ResolvedModel:
        """The model on the worker's machine."""
        if self.content is None:
            return ResolvedModel(self.card, self.local, self.engine)
        found = self.local if self.local.folder.exists() else weights.obtain_weights(self.card)
        if fingerprints.compute_folder_fingerprint(found.folder) != self.content:
            raise DataError(
                f"the weights of {self.card.name} on a worker are not those of this machine",
                f"run `retbench fetch {self.card.name}` there, or let RETBENCH_CACHE lie where every machine reads it",
            )
        return ResolvedModel(self.card, found, self.engine)


@dataclass(frozen=True)
class Order:
    """One thing to be done by any worker: a survey for the plan, or a piece and where it is left."""

    model: Model
    spec: EncoderSpec
    task: Piece | TokenizedTexts
    ceiling: int = 0
    sink: Sink | None = None


@dataclass(frozen=True)
class Done:
    """What a worker answers."""

    survey: Survey | None
    peak_mb: float


@dataclass
class Hand:
    """A worker's own side: the last model it was asked for stays loaded."""

    threads: int
    model: Model | None = None
    candidate: ResolvedModel | None = None

    def ready(self) -> None:
        """Answer: it is there."""

    def do(self, order: Order, tell: Tell = lambda *_: None) -> Done | Exception:
        """The answer, or the problem: one that is expected as it is, a bug with its traceback as text."""
        memory.reset_peak()
        try:
            return Done(self._done(order, tell), memory.peak_mb())
        except (RetbenchError, BadVectorError) as problem:
            return problem
        except Exception as problem:  # noqa: BLE001  it is told to whoever gave the order
            return convert_to_resource_error(problem) or RuntimeError(f"in a worker:\n{traceback.format_exc()}")

    def _done(self, order: Order, tell: Tell) -> Survey | None:
        memory.use_threads(self.threads)  # a survey tells them to the plan, and a piece says what its plan has
        encoder = self._encoder(order)
        if isinstance(order.task, TokenizedTexts):
            return survey(encoder, order.task, order.ceiling)
        if order.sink:
            keep(compute(encoder, order.task, tell), order.sink)
        return None

    def _encoder(self, order: Order) -> DenseEncoder:
        if self.candidate is None or self.model != order.model:
            self.candidate = None  # before the next one is loaded: two may not fit
            memory.release()
            self.candidate, self.model = order.model.candidate(), order.model
        return self.candidate.encoder(order.spec)


class LostWorkerError(Exception):
    """A worker died; the text says how."""


class Worker(Protocol):
    """A worker as the team sees it."""

    def ask(self, order: Order, tell: Tell) -> Done | Exception:
        """Have something done, and wait for it; LostWorkerError where it died over it."""
        ...

    def revived(self) -> bool:
        """Wait for its return; False where it is gone for good."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class Team:
    """All workers, and a thread for each that waits for it."""

    def __init__(
        self, makers: Sequence[Callable[[], Worker]], kind: str, threads: int, depot: RemoteStorage | None = None
    ) -> None:
        self.makers, self.kind, self.threads, self.depot = makers, kind, threads, depot
        self.workers: list[Worker] = []
        self.alive, self.closed, self.lock = len(makers), False, Lock()
        self.idle: SimpleQueue[Worker | None] = SimpleQueue()
        self.pool = ThreadPoolExecutor(len(makers))

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True  # whoever is waited for now is let go, not lost
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.close()
        self.idle.put(None)

    def of(self, candidate: ResolvedModel, spec: EncoderSpec) -> "Shared":
        """The team at work on one encoder."""
        content = fingerprints.compute_folder_fingerprint(candidate.weights.folder) if self.depot else None
        return Shared(self, Model(candidate.card, candidate.weights, candidate.engine, content), spec)

    def ask(self, order: Order, tell: Tell) -> Done:
        """Have something done by whoever is free; another one does it again where a worker dies over it."""
        self._begin()
        while True:
            worker = self.idle.get()
            if worker is None:
                self.idle.put(None)  # for the other threads that wait
                raise ResourceError(
                    "no worker is left",
                    "were they out of memory? give fewer --devices and run the same command: finished shards are kept",
                )
            told = _Told(tell, self.lock)
            try:
                answer = worker.ask(order, told)
            except LostWorkerError as lost:
                told.back()
                self._lost(worker, lost)
                continue
            self.idle.put(worker)
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _begin(self) -> None:
        """Start everybody when there is something to do: what is found on disk needs nobody."""
        with self.lock:
            if not self.workers and not self.closed:
                self.workers = [make() for make in self.makers]
                for worker in self.workers:
                    self.idle.put(worker)

    def _lost(self, worker: Worker, lost: LostWorkerError) -> None:
        if not self.closed:
            log.warning("%s: what it was at goes to the others", lost)
        Thread(target=self._await, args=(worker,), daemon=True).start()

    def _await(self, worker: Worker) -> None:
        if not self.closed and worker.revived():
            self.idle.put(worker)
            return
        with self.lock:
            self.alive -= 1
        if not self.alive:
            self.idle.put(None)


def engaged(candidate: ResolvedModel, team: Team | None) -> ResolvedModel:
    """The candidate, its vectors computed by the team where there is one and it has any."""
    if team and not candidate.lexical:
        if candidate.engine.name not in ENGINES:
            raise UsageError(
                f"the engine {candidate.engine.name} shares its work out itself",
                f"leave --devices out, or use {ENGINES[0]}",
            )
        candidate.workers = partial(team.of, candidate)
    return candidate


class _Told:
    """Progress of many, one at a time; taken back where it came to nothing."""

    def __init__(self, tell: Tell, lock: Lock) -> None:
        self.tell, self.lock, self.texts, self.tokens = tell, lock, 0, 0

    def __call__(self, texts: int, tokens: int) -> None:
        with self.lock:
            self.texts, self.tokens = self.texts + texts, self.tokens + tokens
            self.tell(texts, tokens)

    def back(self) -> None:
        self(-self.texts, -self.tokens)


@dataclass
class Shared:
    """A team at work on one encoder: `Workers`, as embedding knows them."""

    team: Team
    model: Model
    spec: EncoderSpec
    peak_mb: float = 0.0

    @property
    def count(self) -> int:
        """How many work at once."""
        return len(self.team.makers)

    @property
    def device(self) -> tuple[str, int]:
        """The kind of device each has, and its threads."""
        return self.team.kind, self.team.threads

    def reach(self) -> None:
        """Not asked of them: they would have to stop for it."""

    def share(self, store: ShardStore) -> None:
        """One plan for all who work at the same vectors."""
        if self.team.depot:
            self.team.depot.open_shard_store(store).sync_plan(store)

    def prepare(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit; this needs no weights."""
        wording = PromptTokenizer(backbone.tokenizer(self.model.local.folder), self.spec.method, self.spec.instruction)
        return wording.tokenize(texts, role, self.spec.get_limit(role))

    def survey(self, longest: TokenizedTexts, ceiling: int) -> Survey:
        """What a plan must know, asked of one worker for all."""
        found = self._ask(Order(self.model, self.spec, longest, ceiling), lambda *_: None).survey
        assert found is not None  # noqa: S101  a survey was asked for
        return found

    def start(self, piece: Callable[[], Piece], store: ShardStore, tell: Tell) -> "Stored":
        """Give a piece to the team; it stands in a queue until one of its threads is free."""
        return Stored(self.team.pool.submit(self._make, piece, store, tell), store)

    def _make(self, piece: Callable[[], Piece], store: ShardStore, tell: Tell) -> int:
        cut = piece()
        if self.team.depot is None:
            self._ask(Order(self.model, self.spec, cut, sink=store), tell)
            return cut.shard
        shelf = self.team.depot.open_shard_store(store)
        if shelf.download_shard(cut.shard, store):  # from an earlier run, of this machine or another
            tell(len(cut.rows), 0)
            return cut.shard
        self._ask(Order(self.model, self.spec, cut, sink=shelf), tell)
        shelf.download_shard(cut.shard, store)
        return cut.shard

    def _ask(self, order: Order, tell: Tell) -> Done:
        done = self.team.ask(order, tell)
        self.peak_mb = max(self.peak_mb, done.peak_mb)
        return done

    def facts(self) -> dict[str, Any]:
        """For the record: the peak memory of the largest worker, and how many there were."""
        return {"peak_memory_mb": round(self.peak_mb, 1), "workers": self.count}


@dataclass(frozen=True)
class Stored:
    """A shard that workers leave in the store: read when it is wanted, so that what waits takes no memory."""

    under_way: "Future[int]"
    store: ShardStore

    def result(self) -> VectorBlock | None:
        """Its vectors, as soon as they are stored."""
        return self.store.read_shard(self.under_way.result())

    def cancel(self) -> None:
        """Do not begin it any more."""
        self.under_way.cancel()
