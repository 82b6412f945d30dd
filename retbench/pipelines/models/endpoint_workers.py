"""The workers of an embedding server: several shards are in flight at once, and come back in their order.

A thread computes a shard by the same code as every other worker; `request_flow.py` decides how many requests are sent
at once. The requests of the first shard are sent first, so that a run that fails leaves few shards half done. The
seconds of a shard are those since the last shard was finished, so their sum is the time of the run.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from retbench.encoders.external_encoders import EndpointEncoder
from retbench.encoders.shard_tasks import (
    InProcessWorker,
    OnBatch,
    PendingShard,
    ShardTask,
    compute_shard,
    write_computed_shard,
)
from retbench.engines.embeddings_client import EndpointUsage
from retbench.engines.http_client import EndpointServer
from retbench.store.shard_store import ShardStore, VectorBlock


@dataclass
class EndpointWorkers(InProcessWorker):
    """Threads that send the texts of one encoder to a server."""

    shards_in_flight: int = 1
    cut_texts: int = field(default=0, init=False)
    last_finished: float = field(default=0.0, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    executor: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)

    @property
    def queue_size(self) -> int:
        """How many shards to hand over before the first one is read."""
        return self.shards_in_flight

    @property
    def server(self) -> EndpointServer:
        """The server of the encoder."""
        return self._get_encoder().client.server

    def _get_encoder(self) -> EndpointEncoder:
        if not isinstance(self.encoder, EndpointEncoder):
            raise TypeError(f"{type(self.encoder).__name__} sends nothing to a server")
        return self.encoder

    def start(self, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> PendingShard:
        """Send a shard from a thread of its own."""
        encoder = self._get_encoder()  # here, so that only one thread builds it
        if self.executor is None:
            self.executor = ThreadPoolExecutor(self.shards_in_flight)
        return PendingEndpointShard(self.executor.submit(self._compute, encoder, task, store, on_batch), self)

    def _compute(self, encoder: EndpointEncoder, task: ShardTask, store: ShardStore, on_batch: OnBatch) -> VectorBlock:
        usage, started = EndpointUsage(turn=task.shard), time.perf_counter()

        def report(texts: int, tokens: int) -> None:
            with self.lock:
                on_batch(texts, tokens)

        shard = compute_shard(replace(encoder, role=task.role, usage=usage), task, report)
        with self.lock:
            finished = time.perf_counter()
            seconds, self.last_finished = finished - max(started, self.last_finished), finished
            self.cut_texts += usage.cut_texts
        return write_computed_shard(replace(shard, tokens=usage.tokens, seconds=seconds), store)

    def stop(self) -> None:
        """Send nothing more: the run has failed or was interrupted."""
        self.server.stopped.set()

    def collect_facts(self) -> dict[str, Any]:
        """Return the peak memory, the texts that were cut for the server, and the most requests at once."""
        with self.lock:
            cut, self.cut_texts = self.cut_texts, 0
        return {**super().collect_facts(), "cut_texts": cut, "most_in_flight": self.server.window.largest}


@dataclass(frozen=True)
class PendingEndpointShard:
    """A shard that a thread sends."""

    computed: "Future[VectorBlock]"
    workers: EndpointWorkers

    def result(self) -> VectorBlock:
        """Wait for the stored vectors."""
        return self.computed.result()

    def cancel(self) -> None:
        """Do not start it, and let a thread that has it send nothing more."""
        if not self.computed.cancel():
            self.workers.stop()
