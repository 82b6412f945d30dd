"""Which dtype is fast on this machine."""

import sys
from pathlib import Path

import pytest

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
