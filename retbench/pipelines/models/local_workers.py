"""Many devices of one machine: a process for each GPU, or several on a CPU that share its threads.

Each has a pipe to this process. A pipe that ends says that its worker died; a worker whose pipe ends goes, too, so none
outlives the run that started it.
"""

import logging
import multiprocessing
import os
import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from retbench.cards.compute_target import RayTarget, parse_compute_target
from retbench.encoders.shard_tasks import Tell
from retbench.engines import memory
from retbench.engines.device import get_device
from retbench.errors import UsageError
from retbench.pipelines.models.worker_pool import Done, Hand, LostWorkerError, Order, Team

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Seat:
    """What one worker may use: one of the GPUs as CUDA_VISIBLE_DEVICES names them, or some threads of the CPU."""

    number: int
    threads: int
    gpu: str | None
    level: int  # how much it says

    def take(self) -> None:
        """Use this and nothing else; before CUDA starts."""
        if self.gpu is not None:
            os.environ[VISIBLE] = self.gpu
        logging.getLogger("retbench").setLevel(self.level)


def seats(wanted: int) -> list[Seat]:
    """So many, or with 0 one for each GPU; a CPU is one device and may be cut into as many as one likes."""
    gpus, level = _gpus(), logging.getLogger("retbench").level
    if wanted > len(gpus) > 0:
        raise UsageError(f"--devices {wanted}: this machine shows {len(gpus)} GPUs", "give --devices all")
    count = wanted or len(gpus) or 1
    if gpus:
        return [Seat(number, memory.threads(), gpu, level) for number, gpu in enumerate(gpus[:count])]
    return [Seat(number, max(1, memory.threads() // count), None, level) for number in range(count)]


def _gpus() -> list[str]:
    if get_device().type != "cuda":
        return []
    import torch

    named = os.environ.get(VISIBLE)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def team(word: str) -> AbstractContextManager[Team | None]:
    """The workers asked for; none where this process alone does as well."""
    where = parse_compute_target(word)
    if isinstance(where, RayTarget):
        from retbench.pipelines.models import ray_workers

        return ray_workers.team(where)
    found = seats(where.devices)
    if len(found) == 1:
        return nullcontext()
    return Team([partial(Process, seat) for seat in found], get_device().type, found[0].threads)


class Process:
    """A worker in a process of its own."""

    def __init__(self, seat: Seat) -> None:
        # not a fork of this process, which may have met CUDA: of one that has imported everything and done nothing
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["retbench.pipelines.models.worker_pool"])
        self.seat = seat
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, seat), daemon=True)
        self.process.start()
        there.close()

    def ask(self, order: Order, tell: Tell) -> Done | Exception:
        """Have something done, and wait for it."""
        try:
            self.pipe.send(order)
            while isinstance(answer := self.pipe.recv(), tuple):
                tell(*answer)
        except (EOFError, OSError) as problem:
            self.process.join()
            how = f"worker {self.seat.number} ended with exit code {self.process.exitcode}"
            raise LostWorkerError(how) from problem
        found: Done | Exception = answer
        return found

    def revived(self) -> bool:
        """What killed it may kill the next one: the others go on without it."""
        return False

    def close(self) -> None:
        """Let it go, whatever it is at: a shard is there completely or not at all."""
        self.process.kill()
        self.process.join()


def serve(pipe: Connection, seat: Seat) -> None:
    """The process of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it, who then lets it go
    seat.take()
    hand = Hand(seat.threads)
    try:
        while True:
            pipe.send(hand.do(pipe.recv(), lambda *told: pipe.send(told)))
    except (EOFError, BrokenPipeError):
        return
