"""Local workers: a process for each GPU of this machine, or several processes that share the threads of a CPU.

Each worker has a pipe to this process. If the pipe closes here, the worker died; if it closes there, this process died,
and the worker ends too.
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
from retbench.encoders.shard_tasks import OnBatch
from retbench.engines import memory
from retbench.engines.device import get_device
from retbench.errors import UsageError
from retbench.pipelines.models.worker_pool import LostWorkerError, WorkerPool, WorkerState, WorkItem, WorkResult

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DeviceSlot:
    """The device of one worker: a GPU, by its name in CUDA_VISIBLE_DEVICES, or some threads of the CPU."""

    number: int
    threads: int
    gpu: str | None
    log_level: int

    def apply_to_process(self) -> None:
        """Restrict this process to the device; call it before CUDA starts."""
        if self.gpu is not None:
            os.environ[VISIBLE_DEVICES] = self.gpu
        logging.getLogger("retbench").setLevel(self.log_level)


def list_device_slots(requested: int) -> list[DeviceSlot]:
    """Return the requested number of slots; 0 means one for each GPU. A CPU can be split into any number of slots."""
    gpus, level = _list_gpus(), logging.getLogger("retbench").level
    if requested > len(gpus) > 0:
        raise UsageError(f"--devices {requested}: this machine has {len(gpus)} GPUs", "give --devices all")
    count = requested or len(gpus) or 1
    if gpus:
        return [DeviceSlot(number, memory.get_thread_count(), gpu, level) for number, gpu in enumerate(gpus[:count])]
    return [DeviceSlot(number, max(1, memory.get_thread_count() // count), None, level) for number in range(count)]


def _list_gpus() -> list[str]:
    if get_device().type != "cuda":
        return []
    import torch

    visible = os.environ.get(VISIBLE_DEVICES)
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def open_worker_pool(devices: str) -> AbstractContextManager[WorkerPool | None]:
    """Open the pool for the value of `--devices`; None if this process alone computes."""
    target = parse_compute_target(devices)
    if isinstance(target, RayTarget):
        from retbench.pipelines.models import ray_workers

        return ray_workers.open_ray_worker_pool(target)
    slots = list_device_slots(target.devices)
    if len(slots) == 1:
        return nullcontext()
    return WorkerPool([partial(ProcessWorker, slot) for slot in slots], get_device().type, slots[0].threads)


class ProcessWorker:
    """A worker in its own process."""

    def __init__(self, slot: DeviceSlot) -> None:
        # no fork of this process, which may have started CUDA, but of a server process that only imported everything
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["retbench.pipelines.models.worker_pool"])
        self.slot = slot
        self.pipe, worker_pipe = context.Pipe()
        self.process = context.Process(target=run_worker_process, args=(worker_pipe, slot), daemon=True)
        self.process.start()
        worker_pipe.close()

    def run(self, item: WorkItem, on_batch: OnBatch) -> WorkResult | Exception:
        """Run an item and wait for its result."""
        try:
            self.pipe.send(item)
            while isinstance(message := self.pipe.recv(), tuple):
                on_batch(*message)
        except (EOFError, OSError):
            self.process.join()
            return LostWorkerError(f"worker {self.slot.number} ended with exit code {self.process.exitcode}")
        result: WorkResult | Exception = message
        if isinstance(result, LostWorkerError):
            self.close()  # its device stays unusable in this process
        return result

    def wait_for_restart(self) -> bool:
        """Return False: a new process may die of the same cause, so the others continue without it."""
        return False

    def close(self) -> None:
        """Kill the process; a shard is stored completely or not at all."""
        self.process.kill()
        self.process.join()


def run_worker_process(pipe: Connection, slot: DeviceSlot) -> None:
    """Run work items until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C and kills the workers
    slot.apply_to_process()
    state = WorkerState(slot.threads)
    try:
        while True:
            pipe.send(state.run(pipe.recv(), lambda *progress: pipe.send(progress)))
    except (EOFError, BrokenPipeError):
        return
