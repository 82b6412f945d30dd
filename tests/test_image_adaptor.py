"""Search-Adaptor on the stored vectors of page images: trained on what the model saw; nothing is embedded twice."""

import json
from pathlib import Path

import pytest

from retbench.corpora import stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.vision_encoder import VisionEncoder
from tests import image_collection, small_collection, tiny_vision_models
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


def test_an_adaptor_is_trained_where_documents_have_no_text(tmp_path: Path) -> None:
    """Captions that ask for photographs: the documents are images alone, as in MS COCO."""
    folder, names = image_collection.write_folder(tmp_path / "photographs"), ("red", "green", "blue")
    documents = [line for line in (folder / "corpus.jsonl").read_text().splitlines() if "image" in line]
    (folder / "corpus.jsonl").write_text("\n".join(documents) + "\n")
    queries = [{"_id": f"q{n}", "text": f"{names[n % 3]} disc number {n}"} for n in range(12)]
    image_collection.write_rows(folder / "queries.jsonl", queries)
    judged = "".join(f"q{n}\t{names[n % 3]}\t1\n" for n in range(12))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    model = tiny_vision_models.build_vision_model(tmp_path / "clip", "clip")
    settings = ("--set", "max_steps=2", "--set", "alpha=[0.1]", "--set", "beta=[0.01]", "--set", "split=test/train")
    line = ("finetune", folder, "--model", model, "--objective", "adaptor", *settings, "--name", "moved")
    answer = run_command(*line)
    assert answer.exit_code == 0, answer.output
    assert f"--task {folder} --set split=test/test" in answer.output
    (cell,) = run_cells(
        "run", "--model", "moved", "--task", folder, "--set", "split=test/test", "--out", tmp_path / "o"
    )
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["collection"]["document_images"] == 3


def test_queries_that_are_images_alone_are_refused(tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "discs")
    queries = [{"_id": f"q{n}", "image": "images/query.png"} for n in range(8)]
    image_collection.write_rows(folder / "queries.jsonl", queries)
    judged = "".join(f"q{n}\tblue\t1\n" for n in range(8))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    model = tiny_vision_models.build_vision_model(tmp_path / "clip", "clip")
    line = ("finetune", folder, "--model", model, "--objective", "adaptor", "--set", "split=test/train")
    answer = run_command(*line)
    assert answer.exit_code == 2
    assert "is an image without a text, and queries of an evaluation are known by their texts" in answer.output
