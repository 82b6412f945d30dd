"""Many processes as one: torchrun starts them, gloo or nccl joins them; alone, nothing is joined."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as joined
from torch.distributed.tensor import DTensor

from retbench.engines.device import get_device

COLLECTIVE_TIMEOUT = timedelta(
    days=1
)  # while one process scores or writes, the others wait; torch gives up after ten minutes


def join_processes() -> None:
    """Join the processes torchrun started, if it did."""
    if "WORLD_SIZE" in os.environ and not joined.is_initialized():
        cuda = get_device().type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        joined.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)


def leave_processes() -> None:
    """Part again."""
    if joined.is_initialized():
        joined.destroy_process_group()


def get_rank() -> int:
    """Which one this is; 0 writes files and talks."""
    return joined.get_rank() if joined.is_initialized() else 0


def get_world_size() -> int:
    """How many there are."""
    return joined.get_world_size() if joined.is_initialized() else 1


def wait_for_all() -> None:
    """Until everybody is here."""
    if get_world_size() > 1:
        joined.barrier()


def gather_vectors(vectors: Tensor, own: list[int], rows: int) -> Tensor:
    """Everybody's vectors in the group's order; only one's own carry gradients."""
    if get_world_size() == 1:
        return vectors
    places = torch.tensor(own, device=vectors.device)
    everything = torch.zeros((rows, vectors.shape[1]), dtype=vectors.dtype, device=vectors.device)
    everything[places] = vectors.detach()
    joined.all_reduce(everything)
    return everything.index_copy(0, places, vectors)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients over all processes."""
    if get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(parameter, DTensor):  # shared out: FSDP has added its gradient up, and divided
            parameter.grad.mul_(get_world_size())
        else:
            joined.all_reduce(parameter.grad)


def sum_over_processes(number: float) -> float:
    """A number summed over all processes."""
    if get_world_size() == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device="cuda" if joined.get_backend() == "nccl" else "cpu")
    joined.all_reduce(value)
    return float(value)
