"""The train loop: loss, gradient, optimizer step; metrics, checkpoints, evaluations. It stops at the first bad loss."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from retbench.cards.recipe import OptimizerSettings
from retbench.engines.memory import get_peak_memory_mb
from retbench.errors import DataError
from retbench.system.durable_files import write_file_atomically
from retbench.training import checkpoint, distributed
from retbench.training.checkpoint import TrainingProgress
from retbench.training.fsdp import gather_tensor

METRICS_FILE = "metrics.jsonl"
FUSED_OPTIMIZER_DEVICES = ("cuda",)  # where one kernel updates all weights: adapters are hundreds of small matrices

Report = Callable[[dict[str, Any]], None]
Evaluate = Callable[[], float]


class TrainingObjective(Protocol):
    """What the loop optimizes."""

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradient of one step to the weights; return its loss and the tokens that this process ran."""
        ...

    def get_first_query(self, step: int) -> str:
        """The beginning of a step's first query, for error messages."""
        ...


@dataclass(frozen=True)
class TrainSchedule:
    """The number of steps, the learning rate, and how often checkpoints and evaluations are made."""

    steps: int
    optimizer: OptimizerSettings
    save_steps: int
    eval_steps: int


def count_warmup_steps(settings: OptimizerSettings, steps: int) -> int:
    """Steps over which the learning rate rises; DeepSpeed's logarithmic warm-up has at least two."""
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * steps)
    return max(2, warmup) if settings.warmup_type == "logarithmic" else warmup


def compute_learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from zero: warm-up, then decay to zero at the end."""
    warmup = count_warmup_steps(settings, steps)
    if step < warmup:
        logarithmic = settings.warmup_type == "logarithmic"
        share = math.log(step + 1) / math.log(warmup) if logarithmic else step / warmup
        return settings.learning_rate * share
    remaining = (steps - step) / max(1, steps - warmup)
    decays = {"linear": remaining, "cosine": 0.5 * (1 - math.cos(math.pi * remaining)), "constant": 1.0}
    return settings.learning_rate * decays[settings.lr_scheduler_type]


def describe_zero_rates(settings: OptimizerSettings, steps: int) -> str | None:
    """Say that a training changes nothing, because its only step is the first of the warm-up; None for all others."""
    if any(compute_learning_rate(settings, step, steps) for step in range(steps)):
        return None
    return (
        f"warning: the learning rate is 0 in all {steps} steps, so the model stays as it is. Take more steps, or "
        "--set optimizer.warmup_ratio=0 --set optimizer.warmup_steps=0 --set optimizer.warmup_type=linear"
    )


@dataclass
class TrainLoop:
    """Trains `weights` of `model` by an objective; `progress` says how far it is."""

    model: nn.Module
    weights: dict[str, nn.Parameter]
    schedule: TrainSchedule
    objective: TrainingObjective
    folder: Path
    log_metrics: Report = lambda _: None
    evaluate: Evaluate | None = None
    progress: TrainingProgress = field(default_factory=TrainingProgress)

    def __post_init__(self) -> None:
        settings = self.schedule.optimizer
        is_fused = all(weight.device.type in FUSED_OPTIMIZER_DEVICES for weight in self.weights.values())
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False,
            fused=is_fused,
        )  # fmt: skip

    def resume(self) -> None:
        """Continue from the last complete checkpoint; metrics of later steps are removed."""
        self.progress = checkpoint.load_checkpoint(self.folder, self.weights, self.optimizer)
        file = self.folder / METRICS_FILE
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        if distributed.get_rank() == 0 and file.exists():
            kept_lines = [line for line in lines if _parse_step(line) <= self.progress.step]
            write_file_atomically(file, "".join(f"{line}\n" for line in kept_lines).encode())

    def run(self) -> TrainingProgress:
        """Run all remaining steps."""
        while self.progress.step < self.schedule.steps:
            self._train_step()
            step = self.progress.step
            if self.evaluate and (step % self.schedule.eval_steps == 0 or step == self.schedule.steps):
                self._evaluate(self.evaluate)
            if step % self.schedule.save_steps == 0 or step == self.schedule.steps:
                self.save_checkpoint()
        return self.progress

    def save_checkpoint(self) -> None:
        """Write a checkpoint; one process writes for all."""
        tensors = checkpoint.collect_state(self.weights, self.optimizer)
        if distributed.get_rank() == 0:
            checkpoint.save_checkpoint(self.folder, tensors, self.progress)
        distributed.wait_for_all()

    def _train_step(self) -> None:
        started, step, schedule = time.perf_counter(), self.progress.step, self.schedule
        learning_rate = compute_learning_rate(schedule.optimizer, step, schedule.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss, tokens = self.objective.backward(step)
        self._check_finite(loss, step)
        distributed.sum_gradients(self.weights.values())
        max_norm = schedule.optimizer.max_grad_norm or math.inf
        norm = float(gather_tensor(nn.utils.clip_grad_norm_(self.weights.values(), max_norm)))
        self._check_finite(norm, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = int(distributed.sum_over_processes(tokens))
        seconds = time.perf_counter() - started
        self.progress.step += 1
        self.progress.seconds += seconds
        self.progress.tokens += tokens
        seconds_left = self.progress.seconds / self.progress.step * (schedule.steps - step - 1)
        memory_mb = round(get_peak_memory_mb(), 1)
        self._log_metrics({"step": step + 1, "steps": schedule.steps, "loss": loss, "rate": learning_rate,
                           "norm": norm, "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1),
                           "memory_mb": memory_mb, "seconds_left": round(seconds_left, 1)})  # fmt: skip

    def _check_finite(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DataError(
                f"the loss or its gradient is NaN or infinite at step {step + 1}; its first query is "
                f"{self.objective.get_first_query(step)!r}; the last checkpoint is kept",
                "lower the learning rate (--set optimizer.learning_rate=...), or check the texts of that batch",
            )

    def _evaluate(self, evaluate: Evaluate) -> None:
        self.model.eval()
        score = evaluate()
        self.model.train()
        self._log_metrics({"step": self.progress.step, "score": score})
        if self.progress.best is None or score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            tensors = checkpoint.collect_state(self.weights)
            if distributed.get_rank() == 0:
                checkpoint.save_best_weights(self.folder, tensors, self.progress)

    def _log_metrics(self, facts: dict[str, Any]) -> None:
        if distributed.get_rank() == 0:
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as out:
                out.write(json.dumps(facts) + "\n")
            self.log_metrics(facts)


def _parse_step(line: str) -> float:
    """The step of a line of metrics; infinite for a line that a full disk cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
