"""What `push` sends: no file of another folder, no damaged weights, no markup of names; adaptors too."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from retbench.cards.method import Method
from retbench.cards.model import AdaptedVectors, DefaultMethod, ModelCard, TrainingProvenance, WeightsSource
from retbench.engines import model_folders
from retbench.engines.fingerprints import compute_folder_fingerprint
from retbench.errors import DataError
from retbench.pipelines.push import plan_push
from retbench.system import checksums, toml_writer
from retbench.system.checksums import compute_sha256
from tests.finished_runs import write_finished_run
from tests.test_flipped_bits import flip_bit

HOSTILE_TASK = "../x | <script>\n# y"


@pytest.fixture
def trained(model: Path, tmp_path: Path, fresh_catalog: Callable[[], None]) -> Path:
    """A folder with weights and a card, as `finetune` writes it."""
    folder = Path(shutil.copytree(model, tmp_path / "pupil"))
    source = WeightsSource("path", path=".", sha256=compute_sha256(folder / "model.safetensors"))
    card = write_card(folder, source)
    method = json.loads(json.dumps(model_folders.get_vector_method_fields(card)))
    checked = {"sha256": source.sha256, "weights": "model.safetensors", "method": method, "eos": None}
    (folder / model_folders.TRAINING_FILE).write_text(json.dumps(checked))
    return folder


def write_card(folder: Path, weights: WeightsSource, **fields: Any) -> ModelCard:
    training = TrainingProvenance(
        {"name": "quick"}, "f" * 64, {"set": "pairs"}, {"steps": 3, "seed": 1}, {}, "retbench finetune"
    )
    method = DefaultMethod("m", Method("m", "t", "ours", "s", "mean"))
    facts: dict[str, Any] = {"weights": weights, "training": training, "method": method, **fields}
    card = ModelCard("pupil", parent="tiny", **facts)
    (folder / "card.toml").write_text(toml_writer.format_card(card))
    return card


def write_run(results: Path, weights: str, task: str = "pantry", **encoder: Any) -> None:
    common = {"query_limit": 8, "document_limit": 8, "dtype": "float32", "weights": weights}
    settings = {"retriever": "dense", "encoder": {**common, **encoder}}
    file = write_finished_run(results, "pupil", "pantry", [0.25, 0.75], settings=settings) / "record.json"
    facts = json.loads(file.read_text())
    facts["task"] = facts["cards"]["task"]["name"] = task
    if task == HOSTILE_TASK:
        facts["cards"]["task"]["source"] |= {"kind": "hub", "repo": "a/b", "revision": "c" * 40}
    file.write_text(json.dumps(facts))


def test_only_files_of_the_folder_itself_are_sent(trained: Path, tmp_path: Path) -> None:
    secret = tmp_path / "credentials.json"
    secret.write_text('{"key": "of somebody"}')
    (trained / "inside.json").symlink_to("config.json")
    assert "inside.json" in plan_push(str(trained), "a/b", tmp_path).files
    (trained / "notes.json").symlink_to(secret)
    with pytest.raises(DataError, match=r"notes\.json is a link to a file elsewhere"):
        plan_push(str(trained), "a/b", tmp_path)
    (trained / "notes.json").unlink()
    os.mkfifo(trained / "notes.json")
    with pytest.raises(DataError, match=r"notes\.json is a pipe or a device"):
        plan_push(str(trained), "a/b", tmp_path)


def test_damaged_weights_are_not_sent(trained: Path, tmp_path: Path) -> None:
    """The tokenizer has no end-of-sequence token, as BERT's has none: the card is compared all the same."""
    flip_bit(trained / "model.safetensors", 8 * 9000)
    with pytest.raises(DataError, match="the card of pupil and its checkpoint disagree about weights"):
        plan_push(str(trained), "a/b", tmp_path)


def test_a_large_file_that_the_disk_damaged_is_not_sent(trained: Path, tmp_path: Path) -> None:
    """Its checksum is cached, and a flipped bit changes neither its size nor its time."""
    file = trained / "vocabulary.json"
    file.write_text(json.dumps(["word"] * 200_000))
    long_ago = time.time_ns() - 10 * checksums.CLOCK_RESOLUTION_NS
    os.utime(file, ns=(long_ago, long_ago))
    checksums.cached_sha256(file)
    assert file.name in plan_push(str(trained), "a/b", tmp_path).files
    flip_bit(file, 8 * 10_002)  # a letter
    with pytest.raises(DataError, match=r"vocabulary\.json is damaged: its bytes changed on disk"):
        plan_push(str(trained), "a/b", tmp_path)


def test_an_incomplete_card_is_named(trained: Path, tmp_path: Path) -> None:
    card = (trained / "card.toml").read_text()
    (trained / "card.toml").write_text("".join(line for line in card.splitlines(True) if not line.startswith("set =")))
    with pytest.raises(DataError, match=r"\[training\] in the card of pupil is incomplete: KeyError\('set'\)"):
        plan_push(str(trained), "a/b", tmp_path)


def test_names_add_no_markup_and_no_folder(trained: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "results", compute_folder_fingerprint(trained), HOSTILE_TASK)
    plan = plan_push(str(trained), "a/b", tmp_path / "results")
    (name,) = (name for name in plan.texts if name.startswith(".eval_results"))
    assert (name.count("/"), name.count("\n")) == (1, 0)
    table = plan.texts["README.md"].split("## Scores")[1]
    assert "| ../x \\| &lt;script&gt; # y | bm25 | ndcg_at_10 | 50.00 |" in table
    assert "\n# y" not in table


def test_an_adaptor_is_pushed_with_the_scores_of_this_adaptor(model: Path, trained: Path, tmp_path: Path) -> None:
    folder, results = tmp_path / "adaptor", tmp_path / "results"
    folder.mkdir()
    save_file({"first.weight": np.ones((2, 2), np.float32)}, folder / "adaptor.safetensors")
    checksum = compute_sha256(folder / "adaptor.safetensors")
    source = WeightsSource("path", path=".", sha256=checksum)
    card = write_card(folder, source, adapted=AdaptedVectors(str(model), "adaptor.safetensors", checksum))
    assert card.training is not None
    training = replace(card.training, recipe={"alpha": [0.1], "seed": 4}, run={"steps": 3})  # as adaptors have it
    (folder / "card.toml").write_text(toml_writer.format_card(replace(card, training=training)))
    for number, adaptor in enumerate((checksum, "f" * 64)):  # the second is an earlier one of the same name
        write_run(results / str(number), compute_folder_fingerprint(model), adaptor=adaptor)
    plan = plan_push(str(folder), "a/b", results / "0")
    assert (set(plan.files), len(plan.scores)) == ({"adaptor.safetensors", "card.toml"}, 1)
    assert "* recipe: adaptor" in plan.texts["README.md"]
    assert "* seed: 4" in plan.texts["README.md"]
    assert plan_push(str(folder), "a/b", results / "1").scores == ()
    flip_bit(folder / "adaptor.safetensors", 40)
    with pytest.raises(DataError, match=r"the checksum of .*adaptor\.safetensors differs from the model card"):
        plan_push(str(folder), "a/b", results)
