"""Dropout that depends on the text alone, not on the pass or the process that runs it.

PyTorch draws one stream of random numbers per pass, so the same text loses other values in another pass. Here a value
is dropped by a hash of the text's seed, the layer, the token's position and the channel: how a batch is divided, padded
or run again changes nothing, on any device.

Dropout inside of attention kernels (`attention_dropout`, in BERT and its kin) is PyTorch's own and not covered.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retbench.engines import varlen
from retbench.engines.device import copy_to_device

SHIFTS_AND_FACTORS = ((16, 0x7FEB352D), (15, 0x846CA68B))  # a mixer of 32 bits with little bias (C. Wellons)
LAST_SHIFT = 16
CHUNK_VALUES = 1 << 16  # values that are hashed at a time on a CPU: more do not fit its cache
GOLDEN_RATIO = 0x9E3779B9
current_seeds: list[Tensor] = []  # of the rows that are being run; a stack


@contextmanager
def use_row_seeds(seeds: Tensor | None) -> Iterator[None]:
    """Within, row i of every input is dropped by seed i. Without seeds nothing changes."""
    if seeds is None:
        yield
        return
    current_seeds.append(seeds)
    try:
        yield
    finally:
        current_seeds.pop()


def restore_row_seeds() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For gradient checkpointing: the second forward pass of a layer uses the seeds of the first."""
    return nullcontext(), use_row_seeds(current_seeds[-1] if current_seeds else None)


def derive_row_seeds(parts: tuple[int, ...], rows: Sequence[int]) -> np.ndarray:
    """A seed of 32 bits per row of a batch."""
    digests = (hashlib.blake2b(repr((*parts, row)).encode(), digest_size=4).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype=np.int32).copy()


class RowDropout(nn.Module):
    """In place of `nn.Dropout`, for inputs [row, token, channel] or [row, channel] of rows padded on the right."""

    def __init__(self, rate: float, salt: int) -> None:
        super().__init__()
        self.p, self.salt = rate, salt  # the name `p` is that of `nn.Dropout`; peft reads it

    def forward(self, states: Tensor) -> Tensor:
        """The states with dropped values, the others scaled up."""
        if not self.training:
            return states
        batch = varlen.CURRENT_BATCH.get()
        if batch is not None:  # all texts are one row
            mask = self.draw_packed_mask(batch.lengths, states.shape[-1], states.device)
            return states if mask is None else states.masked_fill(mask.view(states.shape), 0.0) / (1 - self.p)
        if not current_seeds or len(current_seeds[-1]) != len(states):  # rows that are not texts, as in experts
            return nn.functional.dropout(states, self.p)
        hashes = compute_hashes(current_seeds[-1], self.salt, states.shape[1:-1])
        return states.masked_fill(self._mark_dropped(hashes, states.shape[-1]), 0.0) / (1 - self.p)

    def draw_packed_mask(
        self, lengths: Sequence[int] | np.ndarray, width: int, device: torch.device | None = None
    ) -> Tensor | None:
        """Which values of rows without padding are dropped, [token, channel]; None if none is.

        They are those that `forward` drops of the padded rows.
        """
        if not self.training:
            return None
        if not current_seeds:
            return torch.rand(sum(lengths), width, device=device) < self.p
        hashes = compute_hashes(current_seeds[-1], self.salt, torch.Size([max(lengths)]))
        is_token = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        tokens = copy_to_device(torch.from_numpy(np.flatnonzero(is_token)), hashes.device)
        return self._mark_dropped(hashes.flatten()[tokens], width)

    def _mark_dropped(self, hashes: Tensor, width: int) -> Tensor:
        """Add the channels to hashes and mark those that are dropped, chunk by chunk on a CPU."""
        threshold = math.floor(self.p * 2**32) - 2**31
        flat = hashes.reshape(-1)
        is_dropped = torch.empty((len(flat), width), dtype=torch.bool, device=flat.device)
        rows = max(1, CHUNK_VALUES // width if flat.device.type == "cpu" else len(flat))
        for part, destination in zip(torch.split(flat, rows), torch.split(is_dropped, rows), strict=True):
            torch.lt(_add_axis(part, width), threshold, out=destination)
        return is_dropped.view(*hashes.shape, width)


def compute_hashes(seeds: Tensor, salt: int, shape: torch.Size) -> Tensor:
    """A hash of 32 bits for each value: of its row's seed, the salt, and its indices in the row."""
    hashes = _mix(seeds ^ _to_int32(salt))
    for size in shape:
        hashes = _add_axis(hashes, size)
    return hashes


def _add_axis(hashes: Tensor, size: int) -> Tensor:
    indices = torch.arange(1, size + 1, dtype=torch.int32, device=hashes.device)
    return _mix(hashes[..., None] ^ (indices * _to_int32(GOLDEN_RATIO)))


def _mix(hashes: Tensor) -> Tensor:
    """Mix the bits in place: inputs of wide layers have many values."""
    for shift, factor in SHIFTS_AND_FACTORS:
        hashes.bitwise_xor_(_shift(hashes, shift)).mul_(_to_int32(factor))
    return hashes.bitwise_xor_(_shift(hashes, LAST_SHIFT))


def _shift(hashes: Tensor, bits: int) -> Tensor:
    """An unsigned shift to the right."""
    return torch.bitwise_right_shift(hashes, bits).bitwise_and_(2 ** (32 - bits) - 1)


def _to_int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def replace_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model, those of adapters too."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Dropout) and module.p > 0:
            parent, _, attribute = name.rpartition(".")
            modules[parent].register_module(attribute, RowDropout(module.p, zlib.crc32(name.encode())))
