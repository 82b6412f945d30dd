"""`retbench verify --engine`: two engines agree on a run, or the command fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

from tests import local_server
from tests.test_run import run_cells, run_command


@pytest.fixture
def run(model: Path, task: Path, out: Path) -> Path:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "mean", "--set", "dtype=float32")
    (cell,) = run_cells(*line)
    return Path(cell["record"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        yield


def test_sentence_transformers_agrees(run: Path, model: Path) -> None:
    answer = run_command("verify", run, "--against", "sentence-transformers", "--weights", model, "--json")
    assert answer.exit_code == 0, answer.output
    agreement: dict[str, Any] = json.loads(answer.stdout)
    assert agreement["engines"] == ["transformers", "sentence-transformers"]
    assert agreement["cosine_min"] > 0.99999
    assert agreement["scores"][0] == agreement["scores"][1]
    assert agreement["documents"] == 20


def test_an_engine_with_other_vectors_fails(
    run: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from retbench.engines.sentence_transformers_engine import SentenceTransformersModel

    honest = SentenceTransformersModel.encode
    monkeypatch.setattr(SentenceTransformersModel, "encode", lambda self, rows: honest(self, rows) + 0.5)
    answer = run_command("verify", run, "--against", "sentence-transformers", "--weights", model)
    assert answer.exit_code == 4
    assert "they do NOT agree" in answer.output


def test_other_weights_than_those_of_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    from tests import tiny_models

    other = tiny_models.build_model(tmp_path / "other", intermediate_size=96)
    answer = run_command("verify", run, "--against", "sentence-transformers", "--weights", other)
    assert answer.exit_code == 4
    assert "are not the weights of the run" in answer.output


def test_a_lexical_run_is_refused(task: Path, out: Path) -> None:
    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    answer = run_command("verify", cell["record"], "--against", "sentence-transformers")
    assert answer.exit_code == 2
    assert "has no vectors" in answer.output


@pytest.mark.usefixtures("server")
def test_a_server_with_another_vector_width_is_reported(run: Path, model: Path) -> None:
    answer = run_command("verify", run, "--against", "endpoint", "--weights", model)
    assert answer.exit_code == 4
    assert "width" in answer.output
