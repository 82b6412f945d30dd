"""The machine and the package versions of a run. They explain a score and are not part of the settings-id."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("retbench", "torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Return Python, packages, processor, memory, threads and commit; the GPUs if they were used."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _get_version(name))},
        "cpu": _get_cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "commit": _get_commit(),
        **_describe_gpus(sys.modules.get("torch")),
    }


def _describe_gpus(torch: Any) -> dict[str, Any]:
    """Return the GPUs that computed, if any. torch is used only if it is loaded already."""
    if torch is None or not torch.cuda.is_initialized():
        return {}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "gpu": names[torch.cuda.current_device()],  # prices in retbench.toml are by this name
        "gpus": names,
        "cuda": torch.version.cuda,
        "driver": _run_command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "float32_matmul": torch.backends.cuda.matmul.fp32_precision,
    }


def _get_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _get_cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _get_commit() -> str | None:
    """Return the commit of the checkout that retbench runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    return _run_command("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _run_command(*command: str) -> str | None:
    """Return the first line that a program prints; None if it is missing, fails or prints nothing."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return next(iter(answer.stdout.strip().splitlines()), None) if answer.returncode == 0 else None
