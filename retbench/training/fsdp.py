"""Sharded training (torch's FSDP2): each process holds a part of weights, gradients and optimizer moments.

All processes gather a block together when it computes. So they must all run the same number of passes, one at a time; a
process with fewer texts runs extra passes that add nothing.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from retbench.cards.model import Dtype
from retbench.training import distributed


def shard_model(model: nn.Module, device: torch.device, dtype: Dtype) -> nn.Module:
    """Shard a model's weights over the devices of all processes; one process alone shards nothing.

    The model comes from the CPU. Each block is moved and sharded before the next one, so the whole model never has to
    fit on one device. With `dtype` bfloat16 the weights travel and compute in it, in half of the bytes; gradients are
    summed in float32, and the stored weights and moments keep their dtype.
    """
    if distributed.get_world_size() == 1:
        return model.to(device)
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = fsdp.MixedPrecisionPolicy()
    if dtype == "bfloat16":
        policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    blocks = max((part for part in model.modules() if isinstance(part, nn.ModuleList)), key=len)
    for part in (*blocks, model):
        fsdp.fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of this model are sharded."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def release_gathered_weights(model: nn.Module) -> None:
    """Go back to this process's part of every weight; after a pass without gradients some are still whole."""
    for part in model.modules():
        reshard: Any = getattr(part, "reshard", None)
        if reshard:
            reshard()


def gather_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; every process must call this."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a full tensor, if the weight is sharded."""
    if not isinstance(weight, DTensor):
        return tensor.to(weight.device)
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def gather_for_saving(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Full tensors in the memory of process 0, which writes them; every process must call this.

    One tensor after the other is gathered, so a device needs room for the largest one, not for all.
    """
    gathered = {}
    for name, tensor in tensors:
        full = gather_tensor(tensor.detach())
        if distributed.get_rank() == 0:
            gathered[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return gathered


def gather_state(model: nn.Module) -> dict[str, Tensor] | None:
    """All weights for saving, or None if the model is not sharded; every process must call this."""
    return gather_for_saving(model.state_dict().items()) if is_sharded(model) else None


def count_max_passes(count: int) -> int:
    """The largest number of passes of any process."""
    if distributed.get_world_size() == 1:
        return count
    value = torch.tensor(count, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)
