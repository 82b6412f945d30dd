"""The device to compute on, and whether it multiplies bfloat16 fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from retbench.cards.model import Dtype, ModelCard
from retbench.cards.user_config import load_user_config

FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
SMALL_MODEL_PARAMETERS = 200_000_000


def get_device() -> torch.device:
    """RETBENCH_DEVICE or `device` in retbench.toml; else CUDA where there is one."""
    return torch.device(load_user_config().device or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def has_fast_bf16() -> bool:
    """True where bfloat16 is computed by the hardware itself."""
    if get_device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if get_device().type == "mps":
        return True
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return bool(words & FAST_BF16_FLAGS)


def choose_dtype(card: ModelCard, causal: bool) -> Dtype:
    """The card's dtype; else float32 for small encoders and bfloat16 for decoders, where that is fast."""
    small_encoder = not causal and (card.parameters or 0) < SMALL_MODEL_PARAMETERS
    wanted: Dtype = card.dtype or ("float32" if small_encoder else "bfloat16")
    return "float32" if wanted == "bfloat16" and not has_fast_bf16() else wanted


@contextmanager
def true_float32() -> Iterator[None]:
    """Products in float32 are products in float32 meanwhile, whatever the machine's owner set: no TF32 on CUDA."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
