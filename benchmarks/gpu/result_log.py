"""The results of a part: rows that are written and printed one by one, and the time until its deadline."""

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "gpu_check.jsonl"
NO_GPU = "no GPU: tiny shapes, the timings mean nothing"


@dataclass(frozen=True)
class ResultLog:
    """The rows of one part, which must end before `deadline` (seconds since the epoch)."""

    folder: Path
    part: str
    deadline: float

    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def write_row(self, what: str, **facts: Any) -> None:
        """Write and print one row."""
        line = json.dumps({"part": self.part, "what": what, **facts}, default=str)
        with (self.folder / FILE).open("a", encoding="utf-8") as out:
            out.write(line + "\n")
            out.flush()
        print(line, flush=True)

    @contextmanager
    def record_errors(self, what: str, **facts: Any) -> Iterator[None]:
        """Write an exception as a row, so that the next measurement can run."""
        try:
            yield
        except Exception as problem:  # noqa: BLE001  any error of one measurement
            trace = "".join(traceback.format_exception(problem)[-4:])
            self.write_row(what, **facts, error=f"{type(problem).__name__}: {problem}"[:600], trace=trace[-1800:])


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a results folder."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def measure_seconds(run: Callable[[], object]) -> float:
    """The seconds of a call, including the kernels it started on the device."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release_memory() -> None:
    """Collect garbage and empty the cache of the CUDA allocator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute_median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")
