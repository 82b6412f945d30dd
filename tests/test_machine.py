"""The machine in a record; a GPU is recorded only if it computed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.engines import memory
from retbench.errors import convert_to_resource_error
from retbench.records import machine


def build_fake_torch(initialized: bool) -> Any:
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized, device_count=lambda: 2, current_device=lambda: 1,
        get_device_name=lambda number: ("NVIDIA A100", "NVIDIA H100")[number],
    )  # fmt: skip
    backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(fp32_precision="tf32")))
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"), backends=backends)


def test_a_gpu_that_was_used_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_run_command", lambda *command: command[0])
    assert machine._describe_gpus(build_fake_torch(initialized=True)) == {
        "gpu": "NVIDIA H100", "gpus": ["NVIDIA A100", "NVIDIA H100"], "cuda": "13.0", "driver": "nvidia-smi",
        "float32_matmul": "tf32",
    }  # fmt: skip


def test_a_gpu_that_was_not_used_is_not_recorded() -> None:
    assert machine._describe_gpus(None) == {}
    assert machine._describe_gpus(build_fake_torch(initialized=False)) == {}
    assert "gpu" not in machine.describe_machine()


def test_a_missing_or_failing_program_gives_none() -> None:
    assert machine._run_command("no-such-program") is None
    assert machine._run_command("false") is None
    assert machine._run_command("printf", "one\\ntwo") == "one"


def test_a_read_only_proc_is_no_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path)  # a folder: it cannot be written, as in some containers
    memory.reset_peak_memory()


def test_a_library_without_room_in_memory_is_no_bug() -> None:
    problem = ImportError("_voronoi.so: failed to map segment from shared object")
    assert "memory ran out" in str(convert_to_resource_error(problem))
