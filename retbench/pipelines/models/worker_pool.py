"""Worker pool: several workers, each with a model on its own device, compute the shards of one encoder.

A worker runs the same code in a process of this machine (`local_workers.py`) and in an actor of a Ray cluster
(`ray_workers.py`). An idle worker takes the next shard; the shard of a worker that died goes to another worker.
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
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import (
    EncoderProfile,
    OnBatch,
    ShardTask,
    ShardWriter,
    compute_shard,
    measure_encoder,
    write_computed_shard,
)
from retbench.encoders.text_encoder import TextEncoder
from retbench.engines import fingerprints, memory, weights
from retbench.engines.device import is_device_failure
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import (
    BadVectorError,
    DataError,
    ResourceError,
    RetbenchError,
    UsageError,
    convert_to_resource_error,
)
from retbench.pipelines.models import image_settings
from retbench.pipelines.models.model import ResolvedModel
from retbench.store.remote_store import RemoteStorage
from retbench.store.shard_store import ShardStore, VectorBlock

log = logging.getLogger(__name__)

POOLED_ENGINES = ("transformers", "sentence-transformers", "vllm")
SHARDS_PER_WORKER = 4  # handed over ahead of the shard that is read next, so that no worker is idle


@dataclass(frozen=True)
class WorkerModel:
    """The model that a worker loads. `fingerprint` is checked on machines that may have other weights."""

    card: ModelCard
    local_weights: weights.LocalWeights
    engine: Engine
    fingerprint: str | None = None

    def resolve(self) -> ResolvedModel:
        """Find the model on the worker's machine."""
        if self.fingerprint is None:
            return ResolvedModel(self.card, self.local_weights, self.engine)
        has_folder = self.local_weights.folder.exists()
        local_weights = self.local_weights if has_folder else weights.obtain_weights(self.card)
        if fingerprints.compute_folder_fingerprint(local_weights.folder) != self.fingerprint:
            raise DataError(
                f"the weights of {self.card.name} on a worker are not the weights of this machine",
                f"run `retbench fetch {weights.get_fetch_name(self.card)}` there, or put RETBENCH_CACHE where every "
                "machine reads it",
            )
        return ResolvedModel(self.card, local_weights, self.engine)


@dataclass(frozen=True)
class WorkItem:
    """Work for any worker: measure the encoder for a plan, or compute a shard and write it to `destination`."""

    model: WorkerModel
    spec: EncoderSpec
    task: ShardTask | TokenizedTexts
    max_tokens: int = 0
    destination: ShardWriter | None = None


@dataclass(frozen=True)
class WorkResult:
    """The result of a work item."""

    profile: EncoderProfile | None
    peak_mb: float


class LostWorkerError(Exception):
    """A worker died or its device failed; the text states how."""


@dataclass
class WorkerState:
    """The state of one worker, in its process: the last model stays loaded."""

    threads: int
    worker_model: WorkerModel | None = None
    model: ResolvedModel | None = None

    def ping(self) -> None:
        """Return at once: the worker is alive."""

    def run(self, item: WorkItem, on_batch: OnBatch = lambda *_: None) -> WorkResult | Exception:
        """Return the result or the error. An unexpected error is returned with its traceback as text."""
        memory.reset_peak_memory()
        try:
            return WorkResult(self._run_item(item, on_batch), memory.get_peak_memory_mb())
        except (RetbenchError, BadVectorError) as problem:
            return problem
        except Exception as problem:  # noqa: BLE001  the pool raises it
            if is_device_failure(problem):
                return LostWorkerError(f"a device failed ({str(problem).splitlines()[0]})")
            return convert_to_resource_error(problem) or RuntimeError(f"in a worker:\n{traceback.format_exc()}")

    def _run_item(self, item: WorkItem, on_batch: OnBatch) -> EncoderProfile | None:
        memory.set_thread_count(self.threads)  # a profile contains them; a shard task has those of its plan
        encoder = self._load_encoder(item)
        if isinstance(item.task, TokenizedTexts):
            return measure_encoder(encoder, item.task, item.max_tokens)
        if item.destination:
            write_computed_shard(compute_shard(encoder, item.task, on_batch), item.destination)
        return None

    def _load_encoder(self, item: WorkItem) -> TextEncoder:
        if self.model is None or self.worker_model != item.model:
            self.model = None  # before the next model is loaded: two may not fit
            memory.release_gpu_cache()
            self.model, self.worker_model = item.model.resolve(), item.model
        return self.model.load_encoder(item.spec)


class Worker(Protocol):
    """A worker as the pool uses it."""

    def run(self, item: WorkItem, on_batch: OnBatch) -> WorkResult | Exception:
        """Run an item and wait for its result; return LostWorkerError if the worker died or its device failed."""
        ...

    def wait_for_restart(self) -> bool:
        """Wait until the worker is back; False if it is lost."""
        ...

    def close(self) -> None:
        """Stop the worker."""
        ...


class WorkerPool:
    """The workers, and one thread for each that waits for its result."""

    def __init__(
        self, create_workers: Sequence[Callable[[], Worker]], device_type: str, threads: int,
        remote_storage: RemoteStorage | None = None,
    ) -> None:  # fmt: skip
        self.create_workers, self.device_type, self.threads = create_workers, device_type, threads
        self.remote_storage = remote_storage
        self.workers: list[Worker] = []
        self.alive, self.closed, self.lock = len(create_workers), False, Lock()
        self.idle: SimpleQueue[Worker | None] = SimpleQueue()
        self.executor = ThreadPoolExecutor(len(create_workers))

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True  # a worker that stops now was not lost
        self.executor.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.close()
        self.idle.put(None)

    def share_encoder(self, model: ResolvedModel, spec: EncoderSpec) -> "PooledEncoder":
        """Return the pool as the workers of one encoder."""
        image_settings.check_workers(spec, is_remote=self.remote_storage is not None)
        fingerprint = fingerprints.compute_folder_fingerprint(model.weights.folder) if self.remote_storage else None
        return PooledEncoder(self, WorkerModel(model.card, model.weights, model.engine, fingerprint), spec)

    def run(self, item: WorkItem, on_batch: OnBatch) -> WorkResult:
        """Run an item on an idle worker; if the worker dies, run it again on another."""
        self._start_workers()
        while True:
            worker = self.idle.get()
            if worker is None:
                self.idle.put(None)  # for the other waiting threads
                raise ResourceError(
                    "no worker is left",
                    "were they out of memory? give fewer --devices and run the same command: finished shards are kept",
                )
            progress = _SharedProgress(on_batch, self.lock)
            result = worker.run(item, progress)
            if isinstance(result, LostWorkerError):
                progress.take_back()
                self._handle_lost_worker(worker, result)
                continue
            self.idle.put(worker)
            if isinstance(result, Exception):
                raise result
            return result

    def _start_workers(self) -> None:
        """Start all workers at the first item: a run that finds everything on disk needs none."""
        with self.lock:
            if not self.workers and not self.closed:
                self.workers = [create_worker() for create_worker in self.create_workers]
                for worker in self.workers:
                    self.idle.put(worker)

    def _handle_lost_worker(self, worker: Worker, lost: LostWorkerError) -> None:
        if not self.closed:
            log.warning("%s: another worker computes its shard", lost)
        Thread(target=self._await_restart, args=(worker,), daemon=True).start()

    def _await_restart(self, worker: Worker) -> None:
        if not self.closed and worker.wait_for_restart():
            self.idle.put(worker)
            return
        with self.lock:
            self.alive -= 1
        if not self.alive:
            self.idle.put(None)


def attach_worker_pool(model: ResolvedModel, pool: WorkerPool | None) -> ResolvedModel:
    """Let the pool compute the model's vectors, if there is a pool and the model has vectors."""
    if pool and not model.lexical_settings:
        if model.engine.tensor_parallel_size:
            raise UsageError(
                "a worker has one GPU, so it cannot use tensor_parallel_size",
                "leave --devices out, or leave tensor_parallel_size out",
            )
        if model.engine.name not in POOLED_ENGINES:
            raise UsageError(
                f"the engine {model.engine.name} distributes its work itself",
                f"leave --devices out, or use {POOLED_ENGINES[0]}",
            )
        model.create_workers = partial(pool.share_encoder, model)
    return model


class _SharedProgress:
    """Reports the progress of several threads one at a time, and takes it back if a worker dies."""

    def __init__(self, on_batch: OnBatch, lock: Lock) -> None:
        self.on_batch, self.lock, self.texts, self.tokens = on_batch, lock, 0, 0

    def __call__(self, texts: int, tokens: int) -> None:
        with self.lock:
            self.texts, self.tokens = self.texts + texts, self.tokens + tokens
            self.on_batch(texts, tokens)

    def take_back(self) -> None:
        self(-self.texts, -self.tokens)


@dataclass
class PooledEncoder:
    """A worker pool as the `ShardWorkers` of one encoder."""

    pool: WorkerPool
    model: WorkerModel
    spec: EncoderSpec
    peak_mb: float = 0.0

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self.pool.create_workers)

    @property
    def queue_size(self) -> int:
        """How many shards to hand over before the first one is read."""
        return SHARDS_PER_WORKER * self.count

    @property
    def device(self) -> tuple[str, int]:
        """The device type and the threads of each worker."""
        return self.pool.device_type, self.pool.threads

    def peak_throughput(self) -> None:
        """Return None: the workers would have to stop to measure it."""

    def sync_plan(self, store: ShardStore) -> None:
        """Use one plan on all machines."""
        if self.pool.remote_storage:
            self.pool.remote_storage.open_shard_store(store).sync_plan(store)

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Return the token ids, cut to the role's limit; this process does it, without weights."""
        folder = self.model.local_weights.folder
        tokenizer = image_settings.build_tokenizer(folder, load_tokenizer(folder), self.spec)
        return tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def measure_profile(self, longest: TokenizedTexts, max_tokens: int) -> EncoderProfile:
        """Measure one worker for all."""
        profile = self._run(WorkItem(self.model, self.spec, longest, max_tokens), lambda *_: None).profile
        if profile is None:
            raise TypeError("the worker did not measure its encoder")
        return profile

    def start(self, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> "StoredShard":
        """Put a shard into the queue of the pool."""
        return StoredShard(self.pool.executor.submit(self._compute, task, store, on_batch), store)

    def _compute(self, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> int:
        if self.pool.remote_storage is None:
            self._run(WorkItem(self.model, self.spec, task, destination=store), on_batch)
            return task.shard
        remote_store = self.pool.remote_storage.open_shard_store(store)
        if remote_store.download_shard(task.shard, store):  # from an earlier run, of this machine or another
            on_batch(len(task.rows), 0)
            return task.shard
        self._run(WorkItem(self.model, self.spec, task, destination=remote_store), on_batch)
        remote_store.download_shard(task.shard, store)
        return task.shard

    def _run(self, item: WorkItem, on_batch: OnBatch) -> WorkResult:
        result = self.pool.run(item, on_batch)
        self.peak_mb = max(self.peak_mb, result.peak_mb)
        return result

    def collect_facts(self) -> dict[str, Any]:
        """Return the peak memory of the largest worker and the number of workers, for the record."""
        return {"peak_memory_mb": round(self.peak_mb, 1), "workers": self.count}


@dataclass(frozen=True)
class StoredShard:
    """A shard that a worker writes to the store. It is read when it is needed, so a waiting shard uses no memory."""

    computed: "Future[int]"
    store: ShardStore

    def result(self) -> VectorBlock | None:
        """Wait for the shard and read it."""
        return self.store.read_shard(self.computed.result())

    def cancel(self) -> None:
        """Do not start it if it has not started."""
        self.computed.cancel()
