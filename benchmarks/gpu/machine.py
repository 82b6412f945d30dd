"""Describes the machine and measures its peak throughput."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.result_log import NO_GPU, ResultLog, measure_seconds

NVIDIA_SMI_FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,mig.mode.current"
PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "numpy", "triton", "datasets")


def describe_machine(log: ResultLog) -> float:
    """Write rows for the machine and its peak; return the peak in operations per second."""
    log.write_row("machine", note="" if CUDA else NO_GPU, **collect_facts())
    with log.record_errors("peak"):
        return measure_peak(log)
    return float("nan")


def collect_facts() -> dict[str, Any]:
    """Hardware, driver, clocks, versions and the flags that set the precision."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: _find_version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # untyped in torch
        "tf32 products": torch.backends.cuda.matmul.allow_tf32,
        "tf32 convolutions": torch.backends.cudnn.allow_tf32,
        "float32 precision": torch.get_float32_matmul_precision(),
        "reduced precision sums in bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "flash_attn": _find_version("flash-attn"),
        "gpu": {},
    }
    if CUDA:
        told = subprocess.run(["nvidia-smi", f"--query-gpu={NVIDIA_SMI_FIELDS}", "--format=csv,noheader"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        found["gpu"] = dict(zip(NVIDIA_SMI_FIELDS.split(","), told.stdout.strip().split(", "), strict=False))
        found["capability"] = torch.cuda.get_device_capability()
    return found


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure_peak(log: ResultLog, repeats: int = 12) -> float:
    """Operations per second of a large bfloat16 product, the best of several."""
    size = 8192 if CUDA else 256
    one, other = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(one, other)
    taken = min(_time_product(one, other) for _ in range(repeats))
    found = 2 * size**3 / taken
    log.write_row("peak", size=size, dtype="bfloat16", repeats=repeats, tflops=round(found / 1e12, 2))
    return found


def _time_product(one: torch.Tensor, other: torch.Tensor) -> float:
    if not CUDA:
        return measure_seconds(lambda: torch.mm(one, other))
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    torch.mm(one, other)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3
