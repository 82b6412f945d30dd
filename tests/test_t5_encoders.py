"""Sentence-T5 and its kind: of an encoder-decoder only the encoder is loaded, and its attention has two directions."""

import json
from pathlib import Path

import numpy as np
import pytest

import retbench
from retbench.pipelines.runs import saved_run
from tests import small_collection, tiny_models

WIDTH = 32


def build_sentence_t5(folder: Path, with_decoder: bool) -> Path:
    """Write a T5 with random weights in the layout of sentence-transformers; mean pooling."""
    import torch
    from transformers import T5Config, T5EncoderModel, T5Model

    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = None
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = (T5Model if with_decoder else T5EncoderModel)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(parts)
    ]
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    for file, content in (("modules.json", modules), ("1_Pooling/config.json", pooling)):
        (folder / file).write_text(json.dumps(content))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
    return folder


@pytest.mark.usefixtures("fresh_catalog")
@pytest.mark.parametrize("with_decoder", [False, True])
def test_scores_equal_those_of_sentence_transformers(with_decoder: bool, tmp_path: Path) -> None:
    """It was refused for want of a decoder; one that is there is not used."""
    from sentence_transformers import SentenceTransformer

    folder = build_sentence_t5(tmp_path / "tiny-t5", with_decoder)
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    (cell,) = retbench.evaluate([str(folder)], tasks=[pantry], out=tmp_path / "r", overrides={"dtype": "float32"})
    assert (cell.status, cell.error) == ("done", None)
    run = saved_run.load_run(Path(cell.record or ""))
    texts = [f"{row.title} {row.text}".strip() for row in run.collection.corpus]
    theirs = SentenceTransformer(str(folder), device="cpu")
    queries, documents = (
        theirs.encode(part, normalize_embeddings=True) for part in ([row.text for row in run.collection.queries], texts)
    )
    is_told = np.array([bool(text) for text in texts])  # an empty document has an end token here
    for ours, rows, expected in zip(run.ranking.scores, run.ranking.rows, queries @ documents.T, strict=True):
        assert np.allclose(ours[is_told[rows]], expected[rows][is_told[rows]], atol=1e-5)
