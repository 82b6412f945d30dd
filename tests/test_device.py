"""Which dtype is fast on this machine, and how precise float32 products are."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import ShardTask, compute_shard
from retbench.engines import device

CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list the instructions of a CPU in a file")
@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE", "AVX512_CORE_AMX", "ALL", ""])
def test_a_limit_on_instructions_is_respected(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETBENCH_DEVICE", "cpu")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    is_limited = limit in ("AVX2", "AVX512_CORE")
    monkeypatch.setattr(device, "FAST_BF16_FLAGS", set(CPU_INFO.read_text().split()))  # as a CPU that has them
    device.has_fast_bf16.cache_clear()
    try:
        assert device.has_fast_bf16() is not is_limited
    finally:
        device.has_fast_bf16.cache_clear()


def test_full_precision_lasts_until_the_last_thread_is_done() -> None:
    """One thread embeds while another searches; torch's setting is one for all threads."""
    matmul = torch.backends.cuda.matmul
    previous = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        search, embedding = device.disable_tf32(), device.disable_tf32()
        search.__enter__()
        embedding.__enter__()
        search.__exit__(None, None, None)
        assert matmul.fp32_precision == "ieee"
        embedding.__exit__(None, None, None)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = previous


def test_a_shard_is_computed_in_full_precision() -> None:
    matmul, seen = torch.backends.cuda.matmul, list[str]()
    previous = matmul.fp32_precision
    matmul.fp32_precision = "tf32"

    def encode(batch: TokenizedTexts) -> np.ndarray:
        seen.append(matmul.fp32_precision)
        return np.ones((len(batch), 2), dtype=np.float32)

    tokens = TokenizedTexts(np.arange(2, dtype=np.int32), np.arange(3), 0, 0)
    task = ShardTask(0, "document", np.arange(2), tokens, (2,), torch.get_num_threads())
    try:
        compute_shard(SimpleNamespace(encode=encode), task, lambda *_: None)  # type: ignore[arg-type]
        assert (seen, matmul.fp32_precision) == (["ieee"], "tf32")
    finally:
        matmul.fp32_precision = previous
