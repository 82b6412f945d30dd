"""What the fault tests run: cells and trainings as jobs of a server, which can strike them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server, tiny_models
from tests.faults.helpers import MODULE, Make
from tests.faults.job import Job
from tests.test_crash_recovery import collection
from tests.test_train_loop import jsonl

RECIPE = """
name = "short"
title = "t"
fidelity = "ours"
source = "s"
objective = "contrastive"
dtype = "float32"
save_steps = 1
[method]
name = "m"
title = "t"
fidelity = "ours"
source = "s"
pooling = "mean"
[lengths]
query = 16
document = 24
[contrast]
temperature = 0.1
negatives = 0
[batch]
contrast = 4
update = 4
tokens = 60
[optimiser]
rate = 1e-2
epochs = 3
[lora]
rank = 4
alpha = 8
dropout = 0.2
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collection(tmp_path_factory.mktemp("tasks") / "killed")


@pytest.fixture(scope="module")
def server() -> Iterator[fork_server.Server]:
    with fork_server.server(MODULE) as started:
        yield started


@pytest.fixture
def cell(model: Path, task: Path, tmp_path: Path) -> Make:
    """Jobs of one cell, each with a results folder and a cache of its own."""

    def make(name: str, **changes: Any) -> Job:
        out, cache, log = (str(tmp_path / f"{name}{end}") for end in ("", "-cache", ".log"))
        argv = ("run", "--model", str(model), "--task", str(task), "--method", "mean", "--out", out)
        return replace(Job(str(model), str(task), out, cache, log, delay=0.0, argv=argv), **changes)

    return make


@pytest.fixture
def training(model: Path, tmp_path: Path) -> Make:
    rows = [{"query": tiny_models.SENTENCES[n], "positives": [tiny_models.SENTENCES[16 + n]]} for n in range(8)]
    data, recipe = jsonl(tmp_path / "sentences.jsonl", *rows), tmp_path / "short.toml"
    recipe.write_text(RECIPE)

    def make(name: str, **changes: Any) -> Job:
        out, cache, log = str(tmp_path / name / "pupil"), str(tmp_path / f"{name}-cache"), str(tmp_path / f"{name}.log")
        words = ("-q", "finetune", data, "--model", model, "--recipe", recipe, "--out", out, "--resume")
        return Job(str(model), "", out, cache, log, argv=tuple(map(str, words)), **changes)

    return make
