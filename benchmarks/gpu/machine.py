"""What the machine is, and the most it multiplies."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.sheet import NO_GPU, Sheet, seconds

ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,mig.mode.current"
PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "numpy", "triton", "datasets")


def describe(sheet: Sheet) -> float:
    """Rows of the machine and of its peak; the peak in operations a second."""
    sheet.row("machine", note="" if CUDA else NO_GPU, **facts())
    with sheet.caught("peak"):
        return peak(sheet)
    return float("nan")


def facts() -> dict[str, Any]:
    """Hardware, driver, clocks, versions and the flags that decide precision."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # untyped in torch
        "tf32 products": torch.backends.cuda.matmul.allow_tf32,
        "tf32 convolutions": torch.backends.cudnn.allow_tf32,
        "float32 precision": torch.get_float32_matmul_precision(),
        "reduced precision sums in bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "flash_attn": _version("flash-attn"),
        "gpu": {},
    }
    if CUDA:
        told = subprocess.run(["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        found["gpu"] = dict(zip(ASKED.split(","), told.stdout.strip().split(", "), strict=False))
        found["capability"] = torch.cuda.get_device_capability()
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak(sheet: Sheet, repeats: int = 12) -> float:
    """Operations a second of a large bfloat16 product, the best of some."""
    size = 8192 if CUDA else 256
    one, other = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(one, other)
    taken = min(_timed(one, other) for _ in range(repeats))
    found = 2 * size**3 / taken
    sheet.row("peak", size=size, dtype="bfloat16", repeats=repeats, tflops=round(found / 1e12, 2))
    return found


def _timed(one: torch.Tensor, other: torch.Tensor) -> float:
    if not CUDA:
        return seconds(lambda: torch.mm(one, other))
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    torch.mm(one, other)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3
