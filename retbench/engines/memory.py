"""Memory: peak use since the last reset, how many tokens fit, and what to do when it runs out."""

import ctypes
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retbench.engines.device import get_device_type
from retbench.errors import OUT_OF_MEMORY_MESSAGES

log = logging.getLogger(__name__)

Result = TypeVar("Result")

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FREE_SHARE = 0.2  # of the GPU's memory, for fragmentation and other processes
PROBE_ROWS = (1, 3)  # texts of the longest length; the difference is the memory of two texts
MAX_ONEDNN_KERNELS = "128"  # enough for many batches; the default of 1,024 can take a gigabyte
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def reset_peak_memory() -> None:
    """Reset the peak (on Linux and on CUDA; elsewhere the peak is that since the start of the process)."""
    if get_device_type() == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux, or a container with a read-only /proc: the peak is that since the start
        CLEAR.write_text("5")


def get_peak_memory_mb() -> float:
    """Peak memory in megabytes: of the GPU if it computes, else of the process."""
    if get_device_type() == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def keep_freed_pages() -> None:
    """Make glibc keep large freed blocks; else each forward pass causes page faults for its temporary tensors.

    Also limit the kernel cache of oneDNN, which compiles one kernel per shape, because texts have many lengths.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", MAX_ONEDNN_KERNELS)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def release_freed_pages() -> None:
    """Return the blocks kept by `keep_freed_pages` to the system; called between two cells."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def get_thread_count() -> int:
    """The number of threads that compute on the CPU."""
    import torch

    return torch.get_num_threads()


def set_thread_count(count: int) -> None:
    """Set the number of threads to that of a batch plan: another number would sum in another order."""
    import torch

    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def compute_token_budget(run: Callable[[int], object], longest: int, ceiling: int) -> int:
    """The maximum number of padded tokens per batch: the ceiling, or less if a probe shows that less fits.

    `run` computes a batch of the given number of texts of the longest length. On a CPU the ceiling depends on its
    caches and is far below its memory, so there is no probe. If the probe exceeds ceiling or memory, the longest texts
    run alone.
    """
    import torch

    if get_device_type() != "cuda":
        return ceiling
    if PROBE_ROWS[1] * longest > ceiling:
        return longest
    peaks = []
    for count in PROBE_ROWS:
        torch.cuda.reset_peak_memory_stats()
        try:
            run(count)
        except RuntimeError as problem:
            if count == 1 or not is_out_of_memory(problem):
                raise
            release_gpu_cache()
            return longest
        peaks.append(torch.cuda.max_memory_allocated())
    per_token = max(1.0, (peaks[1] - peaks[0]) / ((PROBE_ROWS[1] - PROBE_ROWS[0]) * longest))
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(longest, min(ceiling, int(free * (1 - FREE_SHARE) / per_token)))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    import torch

    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or any(
        message in str(problem) for message in OUT_OF_MEMORY_MESSAGES
    )


def compute_in_halves(rows: np.ndarray, compute: Callable[[np.ndarray], Result]) -> Iterator[tuple[np.ndarray, Result]]:
    """Yield each part of `rows` with its result. A part that runs out of memory is split in halves, as often as needed.

    If one row alone runs out of memory, its error is raised.
    """
    waiting = [rows]
    while waiting:
        part = waiting.pop()
        try:
            result = compute(part)
        except (RuntimeError, MemoryError) as problem:
            if len(part) == 1 or not is_out_of_memory(problem):
                raise
            waiting += np.array_split(part, 2)[::-1]
        else:
            yield part, result
            continue
        log.warning("out of memory at %d texts: they run in two halves", len(part))
        release_gpu_cache()  # outside of `except`, whose traceback holds the memory of the failed part


def retry_out_of_memory(compute: Callable[..., Result], *arguments: Any) -> Result:
    """Compute, and once more if memory runs out: the batch of another thread is done when the cache is released."""
    try:
        return compute(*arguments)
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
    release_gpu_cache()
    return compute(*arguments)


def release_gpu_cache() -> None:
    """Release the GPU's cached blocks, so that a smaller batch fits."""
    if get_device_type() == "cuda":
        import torch

        torch.cuda.empty_cache()
