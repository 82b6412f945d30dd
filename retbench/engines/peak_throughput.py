"""The most a forward pass can reach: the matrix products of its layers alone, timed on the device that runs it."""

import time
from collections import Counter
from typing import Any

import torch
from torch import nn

TOKENS, MORE = 2048, 8192  # read at once while timing, on a GPU more: it must be full
LAYERS = 4  # products in a row
TIMES = 5  # the best one counts: what else runs on the machine only slows

Shape = tuple[int, int]


def shapes(model: Any) -> Counter[Shape]:
    """How many linear layers there are of each shape."""
    return Counter((m.weight.shape[0], m.weight.shape[1]) for m in model.modules() if isinstance(m, nn.Linear))


def tokens_per_second(model: Any, dtype: torch.dtype, device: torch.device, tokens: int | None = None) -> float:
    """The pace at which nothing but these products would read tokens."""
    tokens = tokens or (TOKENS if device.type == "cpu" else MORE)
    seconds = sum(count * _seconds(shape, tokens, dtype, device) for shape, count in shapes(model).items())
    return tokens / seconds


def _seconds(shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """One product, timed as a forward pass runs it: many in a row, each with weights of its own."""
    states = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    weights = [torch.randn(shape, device=device, dtype=dtype) for _ in range(LAYERS)]
    taken = []
    for _ in range(TIMES + 1):
        _wait(device)
        started = time.perf_counter()
        for weight in weights:
            nn.functional.linear(states, weight)
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:]) / LAYERS  # the first one prepares


def _wait(device: torch.device) -> None:
    """A device is waited for once a row of products, not once each: its queue never runs dry between them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
