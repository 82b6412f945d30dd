"""The loop: draw, loss, gradient, step; write down what happened; stop before anything is spoilt."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retbench.cards.recipe import Optimiser
from retbench.engines.memory import peak_mb
from retbench.errors import DataError
from retbench.store.shard_store import write_whole
from retbench.training import checkpoint, distributed
from retbench.training.checkpoint import Progress
from retbench.training.fsdp import whole
from retbench.training.rates import rate

METRICS = "metrics.jsonl"

Report = Callable[[dict[str, Any]], None]
Assess = Callable[[], float]


def _step_of(line: str) -> float:
    """The step a line was written at; one that a full disk cut short was written at none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and how often something is written down."""

    steps: int
    optimiser: Optimiser
    save_steps: int
    eval_steps: int


@dataclass
class Run:
    """One training. `backward` adds the gradient of a step and answers its loss and its tokens."""

    model: nn.Module
    weights: dict[str, nn.Parameter]
    schedule: Schedule
    backward: Callable[[int], tuple[float, int]]
    folder: Path
    first_text: Callable[[int], str] = lambda _: ""
    report: Report = lambda _: None
    assess: Assess | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        settings = self.schedule.optimiser
        self.adam = torch.optim.AdamW(
            self.weights.values(), lr=settings.rate, weight_decay=settings.weight_decay, foreach=False
        )

    def resume(self) -> None:
        """Go on where the last whole checkpoint stands; what was measured after it did not happen."""
        self.progress = checkpoint.load(self.folder, self.weights, self.adam)
        file = self.folder / METRICS
        lines = file.read_text().splitlines() if file.exists() else []
        if distributed.rank() == 0 and file.exists():
            kept = [line for line in lines if _step_of(line) <= self.progress.step]
            write_whole(file, "".join(f"{line}\n" for line in kept).encode())

    def run(self) -> Progress:
        """Every step that is left."""
        while self.progress.step < self.schedule.steps:
            self._step()
            done = self.progress.step
            if self.assess and (done % self.schedule.eval_steps == 0 or done == self.schedule.steps):
                self._assess(self.assess)
            if done % self.schedule.save_steps == 0 or done == self.schedule.steps:
                self.save()
        return self.progress

    def save(self) -> None:
        """A checkpoint, by one process for all."""
        tensors = checkpoint.held(self.weights, self.adam)
        if distributed.rank() == 0:
            checkpoint.save(self.folder, tensors, self.progress)
        distributed.wait()

    def _step(self) -> None:
        started, step, schedule = time.perf_counter(), self.progress.step, self.schedule
        now = rate(schedule.optimiser, step, schedule.steps)
        for group in self.adam.param_groups:
            group["lr"] = now
        value, tokens = self.backward(step)
        self._stop_at_nonsense(value, step)
        distributed.add_up(self.weights.values())
        norm = float(whole(nn.utils.clip_grad_norm_(self.weights.values(), schedule.optimiser.clip or math.inf)))
        self._stop_at_nonsense(norm, step)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        tokens = int(distributed.total(tokens))
        seconds = time.perf_counter() - started
        self.progress.step += 1
        self.progress.seconds += seconds
        self.progress.tokens += tokens
        left = self.progress.seconds / self.progress.step * (schedule.steps - step - 1)
        self._write({"step": step + 1, "steps": schedule.steps, "loss": value, "rate": now, "norm": norm,
                     "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1),
                     "memory_mb": round(peak_mb(), 1), "seconds_left": round(left, 1)})  # fmt: skip

    def _stop_at_nonsense(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DataError(
                f"the loss or its gradient is no number at step {step + 1}, whose batch begins with "
                f"{self.first_text(step)!r}; the last checkpoint is kept",
                "lower the rate (--set optimiser.rate=...), or look at that batch's texts",
            )

    def _assess(self, assess: Assess) -> None:
        self.model.eval()
        score = assess()
        self.model.train()
        self._write({"step": self.progress.step, "score": score})
        if self.progress.best is None or score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            tensors = checkpoint.held(self.weights)
            if distributed.rank() == 0:
                checkpoint.keep_best(self.folder, tensors)

    def _write(self, facts: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            with (self.folder / METRICS).open("a", encoding="utf-8") as out:
                out.write(json.dumps(facts) + "\n")
            self.report(facts)
