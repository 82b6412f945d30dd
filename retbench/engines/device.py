"""The compute device, and the dtype that is fast on it.

torch takes seconds to import, so it is imported only where it computes: BM25 and a finished cell need none of it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np

from retbench.cards.model import Dtype, EncoderDtype, ModelCard
from retbench.errors import OUT_OF_MEMORY_MESSAGES
from retbench.system.user_config import load_user_config

if TYPE_CHECKING:
    import torch

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))  # NVIDIA, the same in WSL, AMD
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
ONEDNN_LIMIT = "ONEDNN_MAX_CPU_ISA"  # instructions that oneDNN, torch's library of products, may use at most
FAST_BF16_LIMITS = ("", "DEFAULT", "ALL")  # beside names with BF16 or AMX
SMALL_MODEL_PARAMETERS = 200_000_000


def get_device_type() -> str:
    """RETBENCH_DEVICE, or `device` in retbench.toml, or CUDA if available, or the CPU."""
    return load_user_config().device or ("cuda" if _has_cuda() else "cpu")


def _has_cuda() -> bool:
    """Whether torch finds a GPU; on Linux without a driver there is none, and torch is not asked."""
    if sys.platform == "linux" and not any(driver.exists() for driver in GPU_DRIVERS):
        return False
    import torch

    return bool(torch.cuda.is_available())


def get_device() -> "torch.device":
    """The device of `get_device_type`."""
    import torch

    return torch.device(get_device_type())


@cache
def has_fast_bf16() -> bool:
    """Whether the hardware computes in bfloat16."""
    device = get_device_type()
    if device == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return True
    limit = os.environ.get(ONEDNN_LIMIT, "").upper()
    if limit not in FAST_BF16_LIMITS and not ("BF16" in limit or "AMX" in limit):
        return False
    cpu_info = Path("/proc/cpuinfo")
    flags = set(cpu_info.read_text().split()) if cpu_info.exists() else set()
    return bool(flags & FAST_BF16_FLAGS)


def is_device_failure(problem: BaseException) -> bool:
    """Whether a GPU failed (illegal access, ECC error, lost from the bus); CUDA is then unusable in this process."""
    message = str(problem)
    return "CUDA error" in message and not any(short in message for short in OUT_OF_MEMORY_MESSAGES)


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of a model on this machine, and who chose it."""

    dtype: EncoderDtype
    usual: Dtype  # without `--set dtype`, on a machine with fast bfloat16
    chosen_by: Literal["--set dtype", "model card", "default", "machine"]

    @property
    def weights_dtype(self) -> Dtype:
        """The dtype in which weights are loaded; int8 layers are made from float32."""
        return "float32" if self.dtype == "int8" else self.dtype


def _is_small(card: ModelCard) -> bool:
    return (card.parameters or 0) < SMALL_MODEL_PARAMETERS


def choose_dtype(card: ModelCard, is_causal: Callable[[], bool], requested: EncoderDtype | None = None) -> DtypeChoice:
    """The requested dtype, or the card's, or float32 for small encoders, or bfloat16. Slow bfloat16 becomes float32.

    `is_causal` is only called where it decides.
    """
    usual: Dtype = card.dtype or ("float32" if _is_small(card) and not is_causal() else "bfloat16")
    if requested:
        return DtypeChoice(requested, usual, "--set dtype")
    if usual == "bfloat16" and not has_fast_bf16():
        return DtypeChoice("float32", usual, "machine")
    return DtypeChoice(usual, usual, "model card" if card.dtype else "default")


@dataclass
class Float32Setting:
    """torch's setting for float32 products, which all threads share: how many need full precision, and what it was."""

    lock: Lock = field(default_factory=Lock)
    users: int = 0
    previous: str = "none"


FLOAT32_SETTING = Float32Setting()


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Compute float32 products in full precision on CUDA, even if TF32 is enabled globally.

    One thread embeds while another one searches: the setting comes back when the last of them is done.
    """
    import torch

    matmul, setting = torch.backends.cuda.matmul, FLOAT32_SETTING
    with setting.lock:
        if not setting.users:
            setting.previous, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        setting.users += 1
    try:
        yield
    finally:
        with setting.lock:
            setting.users -= 1
            if not setting.users:
                matmul.fp32_precision = setting.previous


def copy_to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor of host memory to a device. A GPU copies it behind its earlier work, and nobody waits for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it was read


def start_copy_to_host(tensor: "torch.Tensor") -> "Callable[[], np.ndarray]":
    """Begin to copy a tensor to host memory; the returned function waits for the copy."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    import torch

    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # untyped in torch
    copied.record()

    def finish() -> "np.ndarray":
        copied.synchronize()
        return np.asarray(pinned.numpy())

    return finish


@contextmanager
def use_search_stream() -> Iterator[None]:
    """Let a search use the thread's current GPU beside the thread that embeds, with priority. On a CPU: nothing.

    On the common stream, each result of a search would wait for the batches before it. All tensors of a search must be
    made and used here, and come from host memory: streams do not wait for each other.
    """
    if get_device_type() != "cuda":
        yield
        return
    import torch

    with torch.cuda.stream(_get_search_stream(torch.cuda.current_device())):
        yield


@cache
def _get_search_stream(gpu: int) -> "torch.cuda.Stream":
    import torch

    return torch.cuda.Stream(gpu, priority=-1)  # type: ignore[no-untyped-call]  # untyped in torch
