"""What a training will take, before it begins: memory from the weights' own figures, time from a short measurement."""

import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from retbench.cards.recipe import Recipe
from retbench.engines.device import get_device
from retbench.engines.memory import peak_mb
from retbench.errors import ResourceError
from retbench.training import distributed
from retbench.training.contrastive_batches import BatchSampler, BatchSource
from retbench.training.train_forward import TrainableEncoder

MEASURED_SECONDS = 4.0
SAMPLED_BATCHES = 8  # contrasts tokenised to know the length of texts
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}
BYTES_PER_TRAINED_WEIGHT = 16  # float32 weights, their gradient and AdamW's two moments


@dataclass(frozen=True)
class TrainingEstimate:
    """The plan in figures."""

    queries: int
    steps_per_epoch: int
    steps: int
    tokens_per_step: float
    tokens_per_second: float
    memory_mb: float

    @property
    def seconds(self) -> float:
        """All steps at the measured speed."""
        return self.steps * self.tokens_per_step / self.tokens_per_second


def check_memory(folder: Path, recipe: Recipe) -> None:
    """Refuse, before anything is loaded, a model whose weights alone do not fit."""
    count, free = count_parameters(folder), _get_free_bytes()
    need = count * (BYTES_PER_WEIGHT[recipe.dtype] if recipe.lora else BYTES_PER_TRAINED_WEIGHT)
    if need < free:
        return
    most = free / (BYTES_PER_WEIGHT["bfloat16"] if recipe.lora else BYTES_PER_TRAINED_WEIGHT)
    step = f"here fits a model of up to {most / 1e9:.2f} billion weights"
    if not recipe.lora and count * BYTES_PER_WEIGHT["bfloat16"] < free:
        step = 'train adapters instead of all weights ([lora], dtype = "bfloat16"), or ' + step
    raise ResourceError(
        f"training {count / 1e9:.2f} billion weights needs {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free", step
    )


def count_parameters(folder: Path) -> int:
    """How many weights a folder holds, from the headers alone."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # no dict
    return total


def _get_free_bytes() -> float:
    if get_device().type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) + _get_page_cache_bytes()


def _get_page_cache_bytes() -> float:
    """Linux counts files it could forget as used."""
    info = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in info.read_text().splitlines()) if info.exists() else {}
    return 1024.0 * int(lines["Cached"].split()[0]) if "Cached" in lines else 0.0


def estimate_training(
    trainee: TrainableEncoder, source: BatchSource, order: BatchSampler, backward: Callable[[int], tuple[float, int]]
) -> TrainingEstimate:
    """Measure a few updates without making a step; the first one only warms up."""
    recipe = trainee.recipe
    lengths = []
    for rows in itertools.islice(order.sample_rows(0)[1], SAMPLED_BATCHES):
        group = source.build_batch(rows, 0)
        lengths.append(len(trainee.tokenize(group.queries, group.passages).flat) / len(rows))
    per_step = sum(lengths) / len(lengths) * order.queries_per_step
    speed = _measure_tokens_per_second(trainee, backward)
    steps = count_steps(order, recipe)
    if recipe.max_minutes:
        steps = max(1, min(steps, int(recipe.max_minutes * 60 * speed / per_step)))
    return TrainingEstimate(len(source), order.steps_per_epoch, steps, per_step, speed, peak_mb())


def count_steps(order: BatchSampler, recipe: Recipe) -> int:
    """What the recipe asks for, whatever the machine."""
    steps = order.steps_per_epoch * recipe.optimizer.num_train_epochs
    return min(steps, recipe.optimizer.max_steps or steps)


def _measure_tokens_per_second(trainee: TrainableEncoder, backward: Callable[[int], tuple[float, int]]) -> float:
    tokens = 0
    for number in itertools.count():
        if number == 1:
            started = time.perf_counter()
        done = backward(number)[1]
        tokens += done if number else 0
        if number and distributed.sum_over_processes(time.perf_counter() - started > MEASURED_SECONDS):
            break  # all together: an update needs everybody
    for weight in trainee.model.parameters():
        weight.grad = None
    return tokens / (time.perf_counter() - started)
