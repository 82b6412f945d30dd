"""The compute device, and the dtype that is fast on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from retbench.cards.model import Dtype, ModelCard
from retbench.cards.user_config import load_user_config

FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
SMALL_MODEL_PARAMETERS = 200_000_000


def get_device() -> torch.device:
    """RETBENCH_DEVICE, or `device` in retbench.toml, or CUDA if available, or the CPU."""
    return torch.device(load_user_config().device or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def has_fast_bf16() -> bool:
    """Whether the hardware computes in bfloat16."""
    if get_device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if get_device().type == "mps":
        return True
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

    dtype: Dtype
    usual: Dtype  # without `--set dtype`, on a machine with fast bfloat16
    chosen_by: Literal["--set dtype", "model card", "default", "machine"]


def choose_dtype(card: ModelCard, causal: bool, requested: Dtype | None = None) -> DtypeChoice:
    """The requested dtype, or the card's, or float32 for small encoders, or bfloat16. Slow bfloat16 becomes float32."""
    small_encoder = not causal and (card.parameters or 0) < SMALL_MODEL_PARAMETERS
    usual: Dtype = card.dtype or ("float32" if small_encoder else "bfloat16")
    if requested:
        return DtypeChoice(requested, usual, "--set dtype")
    if usual == "bfloat16" and not has_fast_bf16():
        return DtypeChoice("float32", usual, "machine")
    return DtypeChoice(usual, usual, "model card" if card.dtype else "default")


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Compute float32 products in full precision on CUDA, even if TF32 is enabled globally."""
    matmul = torch.backends.cuda.matmul
    previous = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = previous
