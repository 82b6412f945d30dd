"""Fixtures of the fault tests: cells and trainings as jobs of a fork server, which can inject a fault."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server, tiny_models
from tests.faults.helpers import MODULE, MakeJob
from tests.faults.job import FaultJob
from tests.short_recipe import format_short_recipe
from tests.test_crash_recovery import write_collection
from tests.test_train_loop import write_jsonl

LORA = """
[lora]
r = 4
lora_alpha = 8
lora_dropout = 0.2
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("tasks") / "killed")


@pytest.fixture(scope="module")
def server() -> Iterator[fork_server.ForkServer]:
    with fork_server.start_fork_server(MODULE) as started:
        yield started


@pytest.fixture
def cell(model: Path, task: Path, tmp_path: Path) -> MakeJob:
    """Build jobs of one cell, each with its own results folder and cache."""

    def make(name: str, **changes: Any) -> FaultJob:
        out, cache, log = (str(tmp_path / f"{name}{end}") for end in ("", "-cache", ".log"))
        argv = ("run", "--model", str(model), "--task", str(task), "--method", "mean", "--out", out)
        return replace(FaultJob(str(model), str(task), out, cache, log, delay=0.0, argv=argv), **changes)

    return make


@pytest.fixture
def training(model: Path, tmp_path: Path) -> MakeJob:
    rows = [{"query": tiny_models.SENTENCES[n], "positives": [tiny_models.SENTENCES[16 + n]]} for n in range(8)]
    data, recipe = write_jsonl(tmp_path / "sentences.jsonl", *rows), tmp_path / "short.toml"
    recipe.write_text(format_short_recipe(tables=LORA))

    def make(name: str, **changes: Any) -> FaultJob:
        out, cache, log = str(tmp_path / name / "pupil"), str(tmp_path / f"{name}-cache"), str(tmp_path / f"{name}.log")
        words = ("-q", "finetune", data, "--model", model, "--recipe", recipe, "--out", out, "--resume")
        return FaultJob(str(model), "", out, cache, log, argv=tuple(map(str, words)), **changes)

    return make
