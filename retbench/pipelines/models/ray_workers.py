"""Ray workers: the workers of the pool as actors on the machines of a Ray cluster.

Ray places the actors, notices when a machine dies and starts an actor again where there is room. Plan and shards are
those of a run without Ray. The token ids of a shard are sent to a worker, which writes its vectors to the remote
storage; this process reads them from there.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from retbench.cards.compute_target import RayTarget
from retbench.encoders.shard_tasks import OnBatch, ShardTask
from retbench.engines import memory
from retbench.errors import MissingError, ResourceError
from retbench.pipelines.models.worker_pool import LostWorkerError, WorkerPool, WorkerState, WorkItem, WorkResult
from retbench.store.remote_store import RemoteStorage
from retbench.system.installation import suggest_extra
from retbench.system.user_config import load_user_config

log = logging.getLogger(__name__)


@contextmanager
def open_ray_worker_pool(target: RayTarget) -> Iterator[WorkerPool]:
    """Start the workers that the cluster has room for."""
    try:
        import ray
    except ImportError as problem:
        raise MissingError("Ray is not installed here", f"{suggest_extra('ray')}, on every machine") from problem
    _connect_to_cluster(ray, target)
    try:
        device_type, threads, count = _count_workers(ray, target)
        resources = {"num_gpus": 1, "num_cpus": 1} if device_type == "cuda" else {"num_cpus": threads}
        actor_class = ray.remote(max_restarts=-1, **resources)(WorkerState)
        start_actor = partial(actor_class.remote, threads)
        create_workers = [
            partial(RayWorker, ray, start_actor, number, target.worker_timeout) for number in range(count)
        ]
        with WorkerPool(create_workers, device_type, threads, RemoteStorage(target.store)) as pool:
            yield pool
    finally:
        ray.shutdown()


def _connect_to_cluster(ray: Any, target: RayTarget) -> None:
    try:
        ray.init(address=target.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        raise ResourceError(
            f"there is no Ray cluster at {target.address}: {problem}",
            "start one (ray start --head, docs/cluster.md), or give --on ray:address=HOST:PORT",
        ) from problem


def _count_workers(ray: Any, target: RayTarget) -> tuple[str, int, int]:
    """Return the device type, the threads of each worker, and the number of workers that the cluster has room for."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in resources)) if load_user_config().device in (None, "cuda") else 0
    threads = target.threads or memory.get_thread_count()
    if not gpus:
        memory.set_thread_count(threads)
    count = gpus or sum(int(node.get("CPU", 0) // threads) for node in resources)
    if not count:
        raise ResourceError(
            f"no machine of the cluster has {threads} CPUs for a worker", "give --on ray:threads=N with a smaller N"
        )
    return "cuda" if gpus else "cpu", threads, min(target.workers or count, count)


class RayWorker:
    """A worker in an actor of the cluster."""

    def __init__(self, ray: Any, start_actor: Callable[[], Any], number: int, restart_timeout: int) -> None:
        self.ray, self.number, self.restart_timeout = ray, number, restart_timeout
        self.actor = start_actor()

    def run(self, item: WorkItem, on_batch: OnBatch) -> WorkResult | Exception:
        """Run an item and wait for its result; progress is reported when all of it is done."""
        try:
            result: WorkResult | Exception = self.ray.get(self.actor.run.remote(item))
        except (
            self.ray.exceptions.RayActorError,
            self.ray.exceptions.NodeDiedError,
            self.ray.exceptions.WorkerCrashedError,
        ):
            return LostWorkerError(f"worker {self.number} on the cluster died")
        if isinstance(result, LostWorkerError):
            self.ray.kill(self.actor, no_restart=False)  # its device stays unusable in this process
        if isinstance(item.task, ShardTask) and isinstance(result, WorkResult):
            on_batch(len(item.task.rows), len(item.task.tokens.flat))
        return result

    def wait_for_restart(self) -> bool:
        """Wait until Ray has started the actor again on any machine, up to a time limit."""
        try:
            self.ray.get(self.actor.ping.remote(), timeout=self.restart_timeout)
        except self.ray.exceptions.RayError:
            return False
        log.warning("worker %d is back", self.number)
        return True

    def close(self) -> None:
        """Stop the actor."""
        self.ray.kill(self.actor)
