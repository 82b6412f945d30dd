"""Weights shared out over processes (torch's FSDP2): each holds a part of weights, gradients and moments.

A block is put together when it computes and taken apart again, by all processes at once. So every process must run as
many passes as every other one, one at a time; who has fewer texts runs a pass that counts for nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from retbench.training import distributed


def shard_model(model: nn.Module) -> nn.Module:
    """Share a model's weights out, block by block; alone, nothing is shared."""
    if distributed.get_world_size() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    blocks = max((part for part in model.modules() if isinstance(part, nn.ModuleList)), key=len)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of this model."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def gather_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; every process must ask."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a whole tensor, where the weight has parts."""
    if not isinstance(weight, DTensor):
        return tensor.to(weight.device)
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def gather_state(model: nn.Module) -> dict[str, Any] | None:
    """All weights put together for saving; none where the model holds them itself. Every process must ask."""
    if not is_sharded(model):
        return None
    return {name: gather_tensor(value.detach()).cpu() for name, value in model.state_dict().items()}


def count_max_passes(count: int) -> int:
    """The largest number of passes any process has."""
    if distributed.get_world_size() == 1:
        return count
    value = torch.tensor(count, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)
