"""Search-Adaptor on the stored vectors of page images: trained on what the model saw; nothing is embedded twice."""

import json
from pathlib import Path

import pytest

from retbench.corpora import stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.vision_encoder import VisionEncoder
from tests import small_collection, tiny_vision_models
from tests.test_run import run_cells, run_command

pytestmark = pytest.mark.usefixtures("fresh_catalog")

TASK = "stdlib-pages"


@pytest.fixture
def _few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen pages with a query each to train on, and two to test."""
    rows = small_collection.DOCUMENTS[:15]

    def generate(_: str) -> RawCollection:
        documents = [TextRow(name, "", text) for name, _, text in rows]
        queries = [TextRow(f"t:{name}", "", text[:20]) for name, _, text in rows]
        queries += [TextRow(f"q:{name}", "", text[5:30]) for name, _, text in rows[:2]]
        train = [Judgment(f"t:{name}", name, 1) for name, _, _ in rows]
        return RawCollection(
            documents, queries, {"train": train, "test": [Judgment(f"q:{name}", name, 1) for name, _, _ in rows[:2]]}
        )

    monkeypatch.setattr(stdlib_suite, "generate_collection", generate)


@pytest.mark.usefixtures("_few_pages")
def test_an_adaptor_is_trained_on_the_vectors_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tiny_vision_models.build_vision_model(tmp_path / "clip", "clip"), tmp_path / "out"
    (parent,) = run_cells("run", "--model", model, "--task", TASK, "--out", out)
    embedded: list[bool] = []
    encode = VisionEncoder.encode

    def count(encoder: VisionEncoder, batch: TokenizedTexts) -> object:
        embedded.extend([batch.images is not None and batch.images.read(row) is not None for row in range(len(batch))])
        return encode(encoder, batch)

    monkeypatch.setattr(VisionEncoder, "encode", count)
    settings = ("--set", "max_steps=20", "--set", "alpha=[0.1]", "--set", "beta=[0.01]")
    line = ("finetune", TASK, "--model", model, "--objective", "adaptor", *settings, "--name", "moved", "--json")
    answer = run_command(*line)
    assert answer.exit_code == 0, answer.output
    assert embedded == [False] * 15  # the training queries; the pages were stored, and no page was read as a text
    embedded.clear()
    (cell,) = run_cells("run", "--model", "moved", "--task", TASK, "--out", out)
    assert embedded == []
    assert cell["settings_id"] != parent["settings_id"]
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["collection"]["document_images"] == 15
