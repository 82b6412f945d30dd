"""The compute device, and the dtype that is fast on it.

torch takes seconds to import, so it is imported only where it computes: BM25 and a finished cell need none of it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retbench.cards.model import Dtype, EncoderDtype, ModelCard
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
    return "CUDA error" in message and "out of memory" not in message


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


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Compute float32 products in full precision on CUDA, even if TF32 is enabled globally."""
    import torch

    matmul = torch.backends.cuda.matmul
    previous = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = previous
