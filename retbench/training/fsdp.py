"""Sharded training (torch's FSDP2): each process holds a part of weights, gradients and optimizer moments.

All processes gather a block together when it computes. So they must all run the same number of passes, one at a time; a
process with fewer texts runs extra passes that add nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from retbench.training import distributed


def shard_model(model: nn.Module) -> nn.Module:
    """Shard a model's weights block by block; one process alone shards nothing."""
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
    """Whether the weights of this model are sharded."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def gather_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; every process must call this."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a full tensor, if the weight is sharded."""
    if not isinstance(weight, DTensor):
        return tensor.to(weight.device)
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def gather_state(model: nn.Module) -> dict[str, Any] | None:
    """All weights for saving, or None if the model is not sharded; every process must call this."""
    if not is_sharded(model):
        return None
    return {name: gather_tensor(value.detach()).cpu() for name, value in model.state_dict().items()}


def count_max_passes(count: int) -> int:
    """The largest number of passes of any process."""
    if distributed.get_world_size() == 1:
        return count
    value = torch.tensor(count, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)
