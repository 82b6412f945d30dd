"""Peak throughput: the upper bound for a forward pass, from timing only its matrix products on the same device."""

import time
from collections import Counter
from typing import Any

import torch
from torch import nn

from retbench.engines.device import get_device, has_fast_bf16

CPU_TOKENS, GPU_TOKENS = 2048, 8192  # per product; a GPU needs more to be fully used
PRODUCTS_PER_TIMING = 4  # consecutive products
CPU_PEAK_SIZE, GPU_PEAK_SIZE = 1024, 8192  # rows and columns of both factors
REPETITIONS = 5  # the fastest one counts, because other processes only slow it down

Shape = tuple[int, int]


def count_linear_shapes(model: Any) -> Counter[Shape]:
    """The number of linear layers per shape."""
    return Counter((m.weight.shape[0], m.weight.shape[1]) for m in model.modules() if isinstance(m, nn.Linear))


def measure_peak_throughput(model: Any, dtype: torch.dtype, device: torch.device, tokens: int | None = None) -> float:
    """Tokens per second if only the products of the linear layers took time."""
    tokens = tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    seconds = sum(
        count * _time_product(shape, tokens, dtype, device) for shape, count in count_linear_shapes(model).items()
    )
    return tokens / seconds


def measure_device_peak() -> float:
    """FLOP per second of this device in large products, in the dtype that decoders run in on it."""
    device = get_device()
    size = CPU_PEAK_SIZE if device.type == "cpu" else GPU_PEAK_SIZE
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    return 2.0 * size**3 / _time_product((size, size), size, dtype, device)


def _time_product(shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one product. As in a forward pass, several run in a row, each with its own weights."""
    states = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    weights = [torch.randn(shape, device=device, dtype=dtype) for _ in range(PRODUCTS_PER_TIMING)]
    timings = []
    for _ in range(REPETITIONS + 1):
        _synchronize(device)
        started = time.perf_counter()
        for weight in weights:
            nn.functional.linear(states, weight)
        _synchronize(device)
        timings.append(time.perf_counter() - started)
    return min(timings[1:]) / PRODUCTS_PER_TIMING  # the first one is a warm-up


def _synchronize(device: torch.device) -> None:
    """Wait for the device. Done once per row of products, so that its queue is never empty between them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
