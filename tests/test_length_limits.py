"""How much of a text is read: the protocol of the task, the card of the model, `--set max_length`, and the window."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from retbench.cards.task import LengthLimits, SourceSpec, TaskCard
from retbench.encoders.encoder_spec import compute_length_limits
from retbench.engines.model_folders import read_context_window
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command

WORDS = " ".join(tiny_models.SENTENCES)  # about 650 tokens


@pytest.mark.parametrize(
    ("protocol", "card", "expected", "limits"),
    [
        ((64, 512), 256, None, (64, 256)),  # the smaller one of task and card
        ((64, 512), None, None, (64, 512)),
        ((64, 0), None, None, (64, 2048)),  # no limit in the task: the context length
        ((512, 512), 256, 512, (512, 512)),  # --set wins over the card
        ((512, 512), 256, 1024, (1024, 1024)),  # and over the task
        ((512, 512), None, 128, (128, 128)),
        ((64, 512), None, 128, (64, 128)),  # shorter than one limit: a smaller limit stays
        ((64, 512), None, 513, (513, 513)),
        ((512, 0), None, 1024, (512, 1024)),
        ((0, 0), 256, 1024, (1024, 1024)),
    ],
)
def test_limits(protocol: tuple[int, int], card: int | None, expected: int | None, limits: tuple[int, int]) -> None:
    task = TaskCard("t", SourceSpec("folder", path="x"), lengths=LengthLimits(*protocol))
    assert compute_length_limits(task, card, 2048, expected) == limits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_collection.write_folder(tmp_path_factory.mktemp("tasks") / "long")
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "long", "title": "", "text": WORDS}) + "\n")
    return folder


def read_record(cell: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(cell["record"]) / "record.json").read_text())
    return record


def test_a_longer_run_reads_more_and_is_a_variant_of_its_own(model: Path, task: Path, tmp_path: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--method", "mean", "--out", tmp_path / "results")
    (long,) = run_cells(*line, "--set", "max_length=900")
    whole = len(AutoTokenizer.from_pretrained(model)(WORDS)["input_ids"])
    assert 512 < whole < 900
    assert read_record(long)["texts"]["document"] == {**read_record(long)["texts"]["document"], "longest": whole}
    assert "mean (900/900 tokens, the protocol has 512/512)" in run_command("report", tmp_path / "results").output
    (short,) = run_cells(*line)
    assert short["settings_id"] != long["settings_id"]
    assert read_record(short)["texts"]["document"]["longest"] == 512
    board = run_command("report", tmp_path / "results").output
    assert "900/900 tokens, the protocol has 512/512" in board
    assert "512/512 tokens" in board


def test_a_length_beyond_the_window_is_refused(model: Path, task: Path, tmp_path: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", tmp_path / "results", "--dry-run")
    refused = run_command(*line, "--set", "max_length=1025")
    assert refused.exit_code == 2
    assert "the context window of" in refused.output
    assert "has 1024 tokens" in refused.output
    assert run_command(*line, "--set", "max_length=1024").exit_code == 0
    for rope, length, code in (("linear:2", 2048, 0), ("linear:2", 2049, 2), ("dynamic", 4096, 0)):
        settings = ("--set", f"rope={rope}", "--set", f"max_length={length}")
        assert run_command(*line, *settings).exit_code == code


def test_the_window_of_a_folder(tmp_path: Path) -> None:
    def read(**config: Any) -> int | None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return read_context_window(tmp_path)

    assert read(model_type="bert", max_position_embeddings=512, pad_token_id=0) == 512
    assert read(model_type="xlm-roberta", max_position_embeddings=514, pad_token_id=1) == 512
    assert read(model_type="gemma3", text_config={"max_position_embeddings": 32768}) == 32768
    assert read(model_type="t5") is None
