"""Pooling: many token states into one vector a text, by offsets."""

from collections.abc import Callable

import torch
from torch import Tensor

from retbench.cards.method import Pooling


def last(flat: Tensor, offsets: Tensor) -> Tensor:
    """The state of each text's last token."""
    return flat[offsets[1:] - 1].float()


def first(flat: Tensor, offsets: Tensor) -> Tensor:
    """The state of each text's first token."""
    return flat[offsets[:-1]].float()


def mean(flat: Tensor, offsets: Tensor) -> Tensor:
    """The mean over each text's tokens, summed in float32."""
    return _summed(flat.float(), offsets) / offsets.diff()[:, None]


def weighted(flat: Tensor, offsets: Tensor) -> Tensor:
    """The mean in which a text's i-th token weighs i, as in SGPT: later states of a causal model have seen more."""
    weights = (torch.arange(1, len(flat) + 1, device=flat.device) - _spread(offsets[:-1], offsets)).float()
    return _summed(flat.float() * weights[:, None], offsets) / _summed(weights[:, None], offsets)


def _spread(values: Tensor, offsets: Tensor) -> Tensor:
    """A value a text as a value a token."""
    return torch.repeat_interleave(values, offsets.diff())


def _summed(flat: Tensor, offsets: Tensor) -> Tensor:
    texts = len(offsets) - 1
    if flat.device.type != "cpu":
        return _in_order(flat, offsets)
    sums = torch.zeros((texts, flat.shape[1]), dtype=torch.float32)
    return sums.index_add_(0, _spread(torch.arange(texts), offsets), flat)


def _in_order(flat: Tensor, offsets: Tensor) -> Tensor:
    """The same sums on a GPU, whose `index_add_` adds in the order in which its threads happen to come."""
    return torch.segment_reduce(flat.float(), "sum", offsets=offsets, axis=0)


def narrowed(flat: Tensor, offsets: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """States and offsets without what stands before each text's `starts`."""
    kept = torch.arange(len(flat), device=flat.device) >= _spread(offsets[:-1] + starts, offsets)
    lengths = offsets.diff() - starts
    return flat[kept], torch.cat((offsets[:1], lengths.cumsum(0)))


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last,
    "first": first,
    "mean": mean,
    "weighted": weighted,
}
