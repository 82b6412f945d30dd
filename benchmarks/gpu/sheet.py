"""Rows that are on the disk and on the screen as soon as they are known, and the time that is left to a part."""

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
NO_GPU = "no GPU: tiny shapes, nothing measured"


@dataclass(frozen=True)
class Sheet:
    """The rows of one part, which has to be done when the clock shows `ends`."""

    folder: Path
    part: str
    ends: float

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.time()

    def row(self, what: str, **facts: Any) -> None:
        """Write and print one row."""
        line = json.dumps({"part": self.part, "what": what, **facts}, default=str)
        with (self.folder / FILE).open("a", encoding="utf-8") as out:
            out.write(line + "\n")
            out.flush()
        print(line, flush=True)

    @contextmanager
    def caught(self, what: str, **facts: Any) -> Iterator[None]:
        """What goes wrong inside becomes a row; the next measurement goes on."""
        try:
            yield
        except Exception as problem:  # noqa: BLE001  the whole point
            told = "".join(traceback.format_exception(problem)[-4:])
            self.row(what, **facts, error=f"{type(problem).__name__}: {problem}"[:600], trace=told[-1800:])


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every row that was written."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def seconds(run: Callable[[], object]) -> float:
    """What a run takes, up to the last kernel on the device."""
    synchronise()
    started = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give memory back that only the garbage collector can reach."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")
