"""What a training will take: memory by the size of the weights, time by a short measurement."""

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from retbench.cards.recipe import Recipe
from retbench.engines.device import get_device
from retbench.engines.memory import get_peak_memory_mb
from retbench.engines.weight_sizes import BYTES_PER_TRAINED_WEIGHT, BYTES_PER_WEIGHT, count_parameters
from retbench.errors import ResourceError
from retbench.training import distributed
from retbench.training.contrastive_batches import BatchSampler
from retbench.training.contrastive_objective import ContrastiveObjective

MEASURED_SECONDS = 4.0
SAMPLED_BATCHES = 8  # batches that are tokenized to estimate the length of texts


@dataclass(frozen=True)
class TrainingEstimate:
    """Steps, tokens, speed and memory of a training."""

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
    """Refuse a model whose weights do not fit into memory, before anything is loaded. Shards share the weights."""
    shards = distributed.get_world_size() if recipe.sharding == "fsdp" else 1
    count, free_bytes = count_parameters(folder), _get_free_bytes_per_process() * shards
    needed_bytes = count * (BYTES_PER_WEIGHT[recipe.dtype] if recipe.lora else BYTES_PER_TRAINED_WEIGHT)
    if needed_bytes < free_bytes:
        return
    largest = free_bytes / (BYTES_PER_WEIGHT["bfloat16"] if recipe.lora else BYTES_PER_TRAINED_WEIGHT)
    next_step = f"use a model of at most {largest / 1e9:.2f} billion weights"
    if not recipe.lora and count * BYTES_PER_WEIGHT["bfloat16"] < free_bytes:
        next_step = 'train adapters instead of all weights ([lora], dtype = "bfloat16"), or ' + next_step
    where = f" on {shards} devices" if shards > 1 else ""
    raise ResourceError(
        f"training {count / 1e9:.2f} billion weights needs {needed_bytes / 1e9:.1f} GB and "
        f"{free_bytes / 1e9:.1f} GB are free{where}",
        next_step,
    )


def _get_free_bytes_per_process() -> float:
    """Free memory of this process's GPU, or its part of the machine's memory."""
    if get_device().type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    free_bytes = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) + _get_page_cache_bytes()
    return free_bytes / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun


def _get_page_cache_bytes() -> float:
    """Memory that Linux counts as used but frees on demand."""
    info = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in info.read_text().splitlines()) if info.exists() else {}
    return 1024.0 * int(lines["Cached"].split()[0]) if "Cached" in lines else 0.0


def estimate_training(objective: ContrastiveObjective) -> TrainingEstimate:
    """Measure a few gradients without an optimizer step; the first one only warms up."""
    recipe, sampler = objective.encoder.recipe, objective.sampler
    tokens_per_step = measure_tokens_per_query(objective) * sampler.queries_per_step
    speed = measure_tokens_per_second(objective)
    steps = limit_steps(sampler, recipe, speed / tokens_per_step)
    return TrainingEstimate(
        len(objective.source), sampler.steps_per_epoch, steps, tokens_per_step, speed, get_peak_memory_mb()
    )


def measure_tokens_per_query(objective: ContrastiveObjective) -> float:
    """The mean number of tokens of a query with its passages, in a few batches."""
    tokens_per_query = []
    for rows in itertools.islice(objective.sampler.sample_rows(0)[1], SAMPLED_BATCHES):
        batch = objective.source.build_batch(rows, 0)
        tokens_per_query.append(len(objective.encoder.tokenize(batch.queries, batch.passages).flat) / len(rows))
    return sum(tokens_per_query) / len(tokens_per_query)


def limit_steps(sampler: BatchSampler, recipe: Recipe, steps_per_second: float) -> int:
    """The steps that the recipe asks for, or those that fit into its `max_minutes`."""
    steps = count_steps(sampler, recipe)
    return max(1, min(steps, int(recipe.max_minutes * 60 * steps_per_second))) if recipe.max_minutes else steps


def count_steps(sampler: BatchSampler, recipe: Recipe) -> int:
    """The steps that the recipe asks for."""
    steps = sampler.steps_per_epoch * recipe.optimizer.num_train_epochs
    return min(steps, recipe.optimizer.max_steps or steps)


def measure_tokens_per_second(objective: ContrastiveObjective) -> float:
    """The speed of a few gradients; the weights stay as they are."""
    total = 0
    for number in itertools.count():
        if number == 1:
            started = time.perf_counter()
        tokens = objective.backward(number)[1]
        total += tokens if number else 0
        if number and distributed.sum_over_processes(time.perf_counter() - started > MEASURED_SECONDS):
            break  # all processes stop together, because a gradient needs all of them
    for weight in objective.encoder.model.parameters():
        weight.grad = None
    return total / (time.perf_counter() - started)
