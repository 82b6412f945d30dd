"""The most a forward pass can reach: the matrix products of its layers alone, timed on the device that runs it."""

import time
from collections import Counter
from typing import Any

import torch
from torch import nn

TOKENS = 2048  # read at once while timing
TIMES = 5  # the best one counts: what else runs on the machine only slows

Shape = tuple[int, int]


def shapes(model: Any) -> Counter[Shape]:
    """How many linear layers there are of each shape."""
    return Counter((m.weight.shape[0], m.weight.shape[1]) for m in model.modules() if isinstance(m, nn.Linear))


def tokens_per_second(model: Any, dtype: torch.dtype, device: torch.device, tokens: int = TOKENS) -> float:
    """The pace at which nothing but these products would read tokens."""
    seconds = sum(count * _seconds(shape, tokens, dtype, device) for shape, count in shapes(model).items())
    return tokens / seconds


def _seconds(shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    states = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    weight = torch.randn(shape, device=device, dtype=dtype)
    taken = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        nn.functional.linear(states, weight)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])  # the first one prepares
