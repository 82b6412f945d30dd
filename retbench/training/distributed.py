"""Several training processes, started by torchrun and connected by gloo or nccl. One process alone connects nothing."""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as torch_distributed
from torch.distributed.tensor import DTensor

from retbench.engines.device import get_device

COLLECTIVE_TIMEOUT = timedelta(
    days=1
)  # others wait while one process evaluates or writes; torch's default is ten minutes


def join_processes() -> None:
    """Connect to the other processes, if torchrun started any."""
    if "WORLD_SIZE" in os.environ and not torch_distributed.is_initialized():
        cuda = get_device().type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch_distributed.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)


def leave_processes() -> None:
    """Disconnect from the other processes."""
    if torch_distributed.is_initialized():
        torch_distributed.destroy_process_group()


def get_rank() -> int:
    """The number of this process; process 0 writes files and prints."""
    return torch_distributed.get_rank() if torch_distributed.is_initialized() else 0


def get_world_size() -> int:
    """The number of processes."""
    return torch_distributed.get_world_size() if torch_distributed.is_initialized() else 1


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if get_world_size() > 1:
        torch_distributed.barrier()


def gather_vectors(vectors: Tensor, own_rows: list[int], rows: int) -> Tensor:
    """The vectors of all processes in the batch's order; only this process's own have gradients."""
    if get_world_size() == 1:
        return vectors
    own_index = torch.tensor(own_rows, device=vectors.device)
    all_vectors = torch.zeros((rows, vectors.shape[1]), dtype=vectors.dtype, device=vectors.device)
    all_vectors[own_index] = vectors.detach()
    torch_distributed.all_reduce(all_vectors)
    return all_vectors.index_copy(0, own_index, vectors)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients over all processes."""
    if get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(parameter, DTensor):  # sharded: FSDP has already averaged its gradient
            parameter.grad.mul_(get_world_size())
        else:
            torch_distributed.all_reduce(parameter.grad)


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    if get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * get_world_size()
    torch_distributed.all_gather_object(gathered, value)
    return gathered


def sum_array(array: np.ndarray) -> np.ndarray:
    """The sum of an array over all processes."""
    if get_world_size() == 1:
        return array
    value = torch.from_numpy(array).to("cuda" if torch_distributed.get_backend() == "nccl" else "cpu")
    torch_distributed.all_reduce(value)
    return np.asarray(value.cpu().numpy())


def sum_over_processes(number: float) -> float:
    """The sum of a number over all processes."""
    if get_world_size() == 1:
        return number
    value = torch.tensor(
        number, dtype=torch.float64, device="cuda" if torch_distributed.get_backend() == "nccl" else "cpu"
    )
    torch_distributed.all_reduce(value)
    return float(value)
