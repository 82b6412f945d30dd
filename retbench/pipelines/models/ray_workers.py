"""Many machines: the same workers as actors on a Ray cluster.

Ray places them, notices the death of a machine and starts an actor again where there is room. The plan, the shards and
this process's store are those of a run without Ray; what travels is a shard's token ids, and what was computed lands in
the depot, from where this process reads it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from retbench.cards.compute_target import RayTarget
from retbench.cards.user_config import load_user_config
from retbench.encoders.shard_tasks import Piece, Tell
from retbench.engines import memory
from retbench.errors import MissingError, ResourceError
from retbench.pipelines.models.worker_pool import Done, Hand, LostWorkerError, Order, Team
from retbench.store.remote_store import RemoteStorage

log = logging.getLogger(__name__)


@contextmanager
def team(site: RayTarget) -> Iterator[Team]:
    """The workers that a cluster has room for."""
    try:
        import ray
    except ImportError as problem:
        raise MissingError("Ray is not installed here", "pip install 'retbench[ray]', on every machine") from problem
    _connect(ray, site)
    try:
        kind, threads, count = _room(ray, site)
        own = {"num_gpus": 1, "num_cpus": 1} if kind == "cuda" else {"num_cpus": threads}
        actor = ray.remote(max_restarts=-1, **own)(Hand)
        start = partial(actor.remote, threads)
        makers = [partial(Actor, ray, start, number, site.worker_timeout) for number in range(count)]
        with Team(makers, kind, threads, RemoteStorage(site.store)) as found:
            yield found
    finally:
        ray.shutdown()


def _connect(ray: Any, site: RayTarget) -> None:
    try:
        ray.init(address=site.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        raise ResourceError(
            f"there is no Ray cluster at {site.address}: {problem}",
            "start one (ray start --head, docs/cluster.md), or give --on ray:address=HOST:PORT",
        ) from problem


def _room(ray: Any, site: RayTarget) -> tuple[str, int, int]:
    """The kind of device, threads of each worker, and how many workers the cluster holds."""
    held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in held)) if load_user_config().device in (None, "cuda") else 0
    threads = site.threads or memory.threads()
    if not gpus:
        memory.use_threads(threads)
    count = gpus or sum(int(node.get("CPU", 0) // threads) for node in held)
    if not count:
        raise ResourceError(
            f"no machine of the cluster has {threads} CPUs for a worker", "give --on ray:threads=N with a smaller N"
        )
    return "cuda" if gpus else "cpu", threads, min(site.workers or count, count)


class Actor:
    """A worker on the cluster."""

    def __init__(self, ray: Any, start: Callable[[], Any], number: int, patience: int) -> None:
        self.ray, self.number, self.patience = ray, number, patience
        self.hand = start()

    def ask(self, order: Order, tell: Tell) -> Done | Exception:
        """Have something done, and wait for it; progress comes when all of it is done."""
        try:
            answer: Done | Exception = self.ray.get(self.hand.do.remote(order))
        except (
            self.ray.exceptions.RayActorError,
            self.ray.exceptions.NodeDiedError,
            self.ray.exceptions.WorkerCrashedError,
        ) as problem:
            raise LostWorkerError(f"worker {self.number} on the cluster died") from problem
        if isinstance(order.task, Piece) and isinstance(answer, Done):
            tell(len(order.task.rows), len(order.task.tokens.flat))
        return answer

    def revived(self) -> bool:
        """Wait until Ray has started it again, somewhere; not for ever."""
        try:
            self.ray.get(self.hand.ready.remote(), timeout=self.patience)
        except self.ray.exceptions.RayError:
            return False
        log.warning("worker %d is back", self.number)
        return True

    def close(self) -> None:
        """Let it go."""
        self.ray.kill(self.hand)
