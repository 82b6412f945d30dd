"""Halves of a split: training queries for a collection that has none, and the rest to test on."""

import json
import sys
from pathlib import Path

import pytest

from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora.open_collection import open_collection
from retbench.errors import DataError, UsageError
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A collection with eight judged queries and no split but test."""
    folder = tmp_path / "untrained"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": title, "text": text} for name, title, text in small_collection.DOCUMENTS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": f"about {small_collection.DOCUMENTS[n][2]}"} for n in range(8)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judgments = [f"q{n}\t{small_collection.DOCUMENTS[n][0]}\t1\n" for n in range(8)]
    (folder / "qrels" / "test.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *judgments]))
    return folder


@pytest.mark.parametrize("objective", ["contrastive", "adaptor"])
def test_a_missing_train_split_is_told_before_torch_is_imported(
    objective: str, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train_encoder", "train_adaptor"):  # the modules that import torch
        monkeypatch.setitem(sys.modules, f"retbench.pipelines.finetuning.{name}", None)
        monkeypatch.delattr(f"retbench.pipelines.finetuning.{name}", raising=False)
    answer = run_command("finetune", task, "--model", "minilm-l6", "--objective", objective)
    assert answer.exit_code == 2
    assert "untrained has no split 'train' to train on; it has test" in answer.output
    assert "--set split=test/train" in answer.output


def open_split(task: Path, split: str) -> set[str]:
    card = TaskCard("untrained", SourceSpec("folder", path=str(task)), split=split)
    collection = open_collection(card)
    assert set(collection.judgments) == set(collection.queries.read_ids().to_pylist())
    return set(collection.judgments)


def test_the_halves_of_a_split_share_no_query(task: Path) -> None:
    whole, train, test = (open_split(task, split) for split in ("test", "test/train", "test/test"))
    assert train | test == whole
    assert not train & test
    assert len(train) == len(test) == 4
    assert train == open_split(task, "test/train")  # the seed is fixed
    with pytest.raises(UsageError, match="has no half 'dev'"):
        open_split(task, "test/dev")
    (task / "qrels" / "test.tsv").write_text(f"q0\t{small_collection.DOCUMENTS[0][0]}\t1\n")
    with pytest.raises(DataError, match="has one query and cannot be halved"):
        open_split(task, "test/train")


@pytest.mark.usefixtures("fresh_catalog")
def test_an_adaptor_trains_on_one_half_and_is_evaluated_on_the_other(task: Path, tmp_path: Path) -> None:
    model = tiny_models.build_model(tmp_path / "tiny")
    options = ("alpha=[0.1]", "beta=[0.01]", "max_steps=25", "batch_size=4")
    line = ["finetune", task, "--model", model, "--objective", "adaptor", "--name", "halved", "--json"]
    words = [word for option in options for word in ("--set", option)]
    refused = run_command(*line, "--set", "split=test/test", *words)
    assert refused.exit_code == 2
    assert "training on that split would make scores invalid" in refused.output
    assert "--set split=test/train" in refused.output
    trained = run_command(*line, "--set", "split=test/train", *words)
    assert trained.exit_code == 0, trained.output
    assert "removed 0 queries" in trained.output  # the other half is compared, not this one
    assert json.loads(trained.stdout)["next"].endswith("--set split=test/test")
    out = tmp_path / "results"
    (cell,) = run_cells("run", "--model", "halved", "--task", task, "--set", "split=test/test", "--out", out)
    assert cell["split"] == "test/test"
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["collection"]["queries"] == 4
    assert "test/test" in run_command("report", out).output  # the board says so
    for words in ([], ["--set", "split=test/train"]):
        refused = run_command("run", "--model", "halved", "--task", task, "--out", out, *words)
        assert "was trained on half of the queries of untrained" in refused.output
        assert "--set split=test/test" in refused.output
        assert refused.exit_code != 0
