"""Runs on collections with images: the record, resuming, and what is skipped with a reason."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retbench
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.vision_encoder import VisionEncoder
from retbench.retrievers import dense_retriever
from tests import image_collection, tiny_vision_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.build_vision_model(tmp_path_factory.mktemp("vision") / "qwen2_5_vl", "qwen2_5_vl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_collection.write_folder(tmp_path / "discs")


def run(model: Path | str, folder: Path, out: Path, **options: Any) -> Any:
    [cell] = retbench.evaluate(model, tasks=folder, out=out, **options)
    return cell


def test_the_record_counts_images_and_their_tokens(model: Path, folder: Path, tmp_path: Path) -> None:
    cell = run(model, folder, tmp_path / "out", methods="promptreps-image", overrides={"max_pixels": 1568})
    record, sample = (json.loads((Path(cell.record) / name).read_text()) for name in ("record.json", "sample.json"))
    assert (record["collection"]["document_images"], record["collection"]["query_images"]) == (3, 1)
    assert record["settings"]["encoder"]["max_pixels"] == 1568
    assert len(record["settings"]["encoder"]["image_processor"]) == 64
    assert "images" not in record["settings"]
    assert sample["document"]["image"] == "60 x 40 pixels"
    assert "<|image_pad|> x 2 <|vision_end|>" in sample["document"]["read"]


def test_an_interrupted_run_continues_after_its_last_shard(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_retriever, "DenseRetriever", partial(dense_retriever.DenseRetriever, shard_rows=1))
    encode, encoded, interrupted = VisionEncoder.encode, [], [5]

    def count_and_interrupt(encoder: VisionEncoder, batch: TokenizedTexts) -> np.ndarray:
        if len(encoded) in interrupted:
            interrupted.clear()
            raise KeyboardInterrupt
        encoded.append(len(batch))
        return encode(encoder, batch)

    monkeypatch.setattr(VisionEncoder, "encode", count_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, folder, tmp_path / "out", methods="last")
    before = len(encoded)
    resumed = run(model, folder, tmp_path / "out", methods="last")
    assert (before, len(encoded)) == (5, 7)  # three queries and four documents, none of them twice
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "other-cache"))
    fresh = run(model, folder, tmp_path / "fresh", methods="last")
    assert [fresh.settings_id, fresh.scores] == [resumed.settings_id, resumed.scores]


def test_models_of_texts_and_rerankers_are_skipped_with_the_reason(model: Path, folder: Path, tmp_path: Path) -> None:
    cell = run("bm25", folder, tmp_path / "out")
    assert cell.status == "skipped"
    assert "3 of its 4 documents and 1 of its 3 queries have images, and bm25 reads only text" in str(cell.error)
    reranked = retbench.evaluate(model, tasks=folder, out=tmp_path / "out", methods="last", rerank="ql")[-1]
    assert reranked.status == "skipped"
    assert "the reranker ql reads only text" in str(reranked.error)


def test_texts_alone_are_another_setting(folder: Path, tmp_path: Path) -> None:
    rows = [{"_id": "q1", "text": "a red disc"}, {"_id": "q2", "text": "discs"}, {"_id": "q3", "text": "a blue disc"}]
    image_collection.write_rows(folder / "queries.jsonl", rows)
    cell = run("bm25", folder, tmp_path / "out", overrides={"images": "ignore"})
    record = json.loads((Path(cell.record) / "record.json").read_text())
    assert record["settings"]["images"] == "ignore"
    assert "document_images" not in record["collection"]
