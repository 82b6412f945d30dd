"""The dtype in the record of a vLLM run is the one that vLLM computed in, not the one that was asked for.

A stand-in for the package vllm, because the real one is in an environment of its own (`make test-vllm`).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests import tiny_models
from tests.test_run import run_cells


class StandInEngine:
    """Like `vllm.LLM` on a machine without float16: it takes bfloat16, with a message in a log that is off."""

    asked: str

    def __init__(self, *, dtype: str, **_: Any) -> None:
        StandInEngine.asked = dtype
        taken = torch.bfloat16 if dtype == "float16" else getattr(torch, dtype)
        config = SimpleNamespace(dtype=taken, get_hidden_size=lambda: tiny_models.WIDTH)
        self.llm_engine = SimpleNamespace(model_config=config)

    def encode(self, prompts: Sequence[dict[str, list[int]]], **_: Any) -> list[Any]:
        vectors = torch.zeros(len(prompts), tiny_models.WIDTH, dtype=self.llm_engine.model_config.dtype)
        for row, prompt in enumerate(prompts):
            for token in prompt["prompt_token_ids"]:
                vectors[row, token % tiny_models.WIDTH] += 1
        return [SimpleNamespace(outputs=SimpleNamespace(data=vector)) for vector in vectors]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {name: ModuleType(name) for name in ("vllm", "vllm.config", "vllm.sampling_params")}
    package: Any = packages["vllm"]
    package.LLM, package.config = StandInEngine, packages["vllm.config"]
    package.config.PoolerConfig = lambda **options: options
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("asked", "computed"), [("float32", "float32"), ("float16", "bfloat16")])
def test_the_record_says_which_dtype_vllm_computed_in(
    model: Path, task: Path, out: Path, asked: str, computed: str
) -> None:
    line = ("run", "--model", model, "--task", task, "--method", "last", "--engine", "vllm", "--out", out)
    (cell,) = run_cells(*line, "--set", f"dtype={asked}")
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert StandInEngine.asked == record["settings"]["encoder"]["dtype"] == asked
    assert record["texts"]["dtype"]["computed"] == record["texts"]["document"]["dtype"] == computed
