"""Memory: its peak since the last reset, how many tokens fit into it, and what it looks like when it ran out."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from retbench.engines.device import get_device

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KEPT_FREE = 0.2  # of the GPU's memory: fragments, and what others start
PROBES = (1, 3)  # rows of the longest length; the difference is what two of them need
LACKS = (  # the words of torch's CPU allocator, of CUDA itself and of its libraries
    "can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
KERNELS = "128"  # many batches' worth; its own 1,024 would take a gigabyte in the end
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def reset_peak() -> None:
    """Start a new high-water mark (on Linux and on CUDA; elsewhere the mark is the process's since its start)."""
    if get_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_mb() -> float:
    """The high-water mark in megabytes, of the memory that computes."""
    if get_device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def keep_pages() -> None:
    """Ask glibc to keep large freed blocks; else each forward pass would fault its temporaries in again.

    And oneDNN to keep fewer kernels: it compiles one for every shape, and texts come in ever new ones.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def free_pages() -> None:
    """Give back what `keep_pages` had kept: between two cells, so that many small ones take no more than one."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def threads() -> int:
    """The threads that compute on the CPU."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Compute with as many threads as a plan began with: another number sums in another order."""
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def token_budget(run: Callable[[int], object], longest: int, ceiling: int) -> int:
    """Padded tokens a batch may hold: the ceiling, or what a probe at the longest length says will fit.

    `run` computes a batch of so many texts of the longest length.
    On a CPU the ceiling is set by its caches and is far from what its memory holds, so nothing is probed. Where the
    ceiling or the memory has no room for the probe, texts of the longest length run alone.
    """
    if get_device().type != "cuda":
        return ceiling
    if PROBES[1] * longest > ceiling:
        return longest
    peaks = []
    for count in PROBES:
        torch.cuda.reset_peak_memory_stats()
        try:
            run(count)
        except RuntimeError as problem:
            if count == 1 or not ran_out(problem):
                raise
            release()
            return longest
        peaks.append(torch.cuda.max_memory_allocated())
    per_token = max(1.0, (peaks[1] - peaks[0]) / ((PROBES[1] - PROBES[0]) * longest))
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(longest, min(ceiling, int(free * (1 - KEPT_FREE) / per_token)))


def ran_out(problem: BaseException) -> bool:
    """True for a real lack of memory and for nothing else."""
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or any(words in str(problem) for words in LACKS)


def release() -> None:
    """Give the GPU's cached blocks back, so that a smaller batch finds room."""
    if get_device().type == "cuda":
        torch.cuda.empty_cache()
