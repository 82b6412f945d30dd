"""The machine and the versions behind a number. None of it changes a settings-id; all of it helps to explain one."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("retbench", "torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Python, packages, processor, memory, threads, commit."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "commit": _commit(),
        **_gpu(sys.modules.get("torch")),
    }


def _gpu(torch: Any) -> dict[str, Any]:
    """The GPUs that computed; nothing where none did. torch is looked at where it is loaded, never loaded for this."""
    if torch is None or not torch.cuda.is_initialized():
        return {}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "gpu": names[torch.cuda.current_device()],  # the name that a price in retbench.toml goes by
        "gpus": names,
        "cuda": torch.version.cuda,
        "driver": _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "float32_matmul": torch.backends.cuda.matmul.fp32_precision,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """The commit of the checkout retbench runs from; none for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    return _told("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _told(*command: str) -> str | None:
    """The first line a program says; none where there is no such program, or it says nothing."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return next(iter(answer.stdout.strip().splitlines()), None) if answer.returncode == 0 else None
