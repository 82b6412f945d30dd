"""Peak throughput: the upper bound for a forward pass, from timing only its matrix products on the same device.

On a busy machine other processes interrupt the products, and a bound that was measured too low would make the share of
it look too good. So a time counts only if no thread of this process was preempted meanwhile, and if a second
undisturbed time agrees with it; else there is no bound.
"""

import resource
import time
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from retbench.engines.device import get_device, has_fast_bf16
from retbench.engines.int8_linear import Int8Linear

CPU_TOKENS, GPU_TOKENS = 2048, 8192  # per product; a GPU needs more to be fully used
MIN_CPU_TOKENS, CPU_PRODUCT_FLOP = 256, 2e9  # fewer tokens for large layers, whose products would take minutes
PRODUCTS_PER_TIMING = 4  # consecutive products
CPU_PEAK_SIZE, GPU_PEAK_SIZE = 1024, 8192  # rows and columns of both factors
MAX_REPETITIONS = 5
TOLERANCE = 1.1  # two times agree if they differ by less

Shape = tuple[int, int]


class ProductTime(NamedTuple):
    """The shortest seconds of a product, and whether it was measured without disturbance, twice."""

    seconds: float
    is_reliable: bool


def count_linear_shapes(model: Any) -> Counter[Shape]:
    """The number of linear layers per shape."""
    layers = (module for module in model.modules() if isinstance(module, (nn.Linear, Int8Linear)))
    return Counter((layer.out_features, layer.in_features) for layer in layers)


def measure_peak_throughput(model: Any, dtype: torch.dtype, device: torch.device) -> float | None:
    """Tokens per second if only the products of the linear layers took time; None if they could not be timed well."""
    return _measure_shapes(tuple(sorted(count_linear_shapes(model).items())), dtype, device)


@cache
def _measure_shapes(counts: tuple[tuple[Shape, int], ...], dtype: torch.dtype, device: torch.device) -> float | None:
    """Time each shape; once per process, because a run has several phases and methods with one model."""
    seconds_per_token = 0.0
    for shape, count in counts:
        tokens = _choose_token_count(shape, device)
        product = _time_product(shape, tokens, dtype, device)
        if not product.is_reliable:
            return None
        seconds_per_token += count * product.seconds / tokens
    return 1 / seconds_per_token


def _choose_token_count(shape: Shape, device: torch.device) -> int:
    if device.type != "cpu":
        return GPU_TOKENS
    return max(MIN_CPU_TOKENS, min(CPU_TOKENS, int(CPU_PRODUCT_FLOP / (2 * shape[0] * shape[1]))))


def measure_device_peak() -> float:
    """FLOP per second of this device in large products, in the dtype that decoders run in on it."""
    device = get_device()
    size = CPU_PEAK_SIZE if device.type == "cpu" else GPU_PEAK_SIZE
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    return 2.0 * size**3 / _time_product((size, size), size, dtype, device).seconds


def _time_product(shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device) -> ProductTime:
    """Time one product. As in a forward pass, several run in a row, each with its own weights."""
    states = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    weights = [torch.randn(shape, device=device, dtype=dtype) for _ in range(PRODUCTS_PER_TIMING)]
    _time_row(states, weights)  # a warm-up
    shortest = float("inf")
    undisturbed: list[float] = []
    for _ in range(MAX_REPETITIONS):
        preemptions = _count_preemptions()
        seconds = _time_row(states, weights) / PRODUCTS_PER_TIMING
        shortest = min(shortest, seconds)
        if _count_preemptions() == preemptions:
            undisturbed = sorted([*undisturbed, seconds])
        if len(undisturbed) > 1 and undisturbed[1] < TOLERANCE * undisturbed[0]:
            return ProductTime(shortest, True)
    return ProductTime(shortest, False)


def _time_row(states: torch.Tensor, weights: list[torch.Tensor]) -> float:
    _synchronize(states.device)
    started = time.perf_counter()
    for weight in weights:
        nn.functional.linear(states, weight)
    _synchronize(states.device)
    return time.perf_counter() - started


def _count_preemptions() -> int:
    """How often the system stopped a thread of this process to run another process; 0 where it does not count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _synchronize(device: torch.device) -> None:
    """Wait for the device. Done once per row of products, so that its queue is never empty between them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
