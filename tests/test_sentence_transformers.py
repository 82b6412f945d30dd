"""The sentence-transformers engine: our token ids, its modules, the same vectors, no chat template applied."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from retbench.cards import catalog
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.external_encoders import TokenIdEncoder
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone, fingerprints, sentence_transformers_engine
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, UsageError
from tests import tiny_models
from tests.test_run import run_cells, run_command

CPU = torch.device("cpu")


def load_both_encoders(folder: Path, name: str) -> tuple[BackboneEncoder, TokenIdEncoder]:
    method = catalog.find_method(name)
    spec = EncoderSpec("weights", method, "", 64, 64, "float32")
    loaded = backbone.load_backbone(folder, "float32", CPU)
    prompt_tokenizer = PromptTokenizer(loaded.tokenizer, method)
    theirs = sentence_transformers_engine.load_sentence_transformers_model(folder, "float32", CPU, method.pooling)
    return BackboneEncoder(spec, loaded, prompt_tokenizer), TokenIdEncoder(spec, theirs, prompt_tokenizer)


@pytest.mark.parametrize("name", ["last", "mean", "first", "weighted", "promptreps", "eos"])
def test_both_engines_agree(model: Path, name: str) -> None:
    ours, theirs = load_both_encoders(model, name)
    tokens = ours.tokenize(tiny_models.SENTENCES, "query")
    our_vectors, their_vectors = ours.encode(tokens), theirs.encode(tokens)
    assert (our_vectors * their_vectors).sum(1).min() > 0.99999
    assert theirs.dimension == ours.dimension


def test_an_interfering_chat_template_is_detected(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    honest = sentence_transformers.SentenceTransformer

    def careless(folder: str, processor_kwargs: Any, **options: Any) -> Any:
        return honest(folder, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", careless)
    with pytest.raises(DataError, match=r"changes the text .*user"):
        sentence_transformers_engine.load_sentence_transformers_model(model, "float32", CPU, "last")


def test_a_published_model_keeps_its_modules(model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    peer = SentenceTransformer(str(model), processor_kwargs={"chat_template": None})
    torch.manual_seed(1)
    parts = [peer[0], Pooling(tiny_models.WIDTH, pooling_mode="mean"), Dense(tiny_models.WIDTH, 16), Normalize()]
    published = SentenceTransformer(modules=parts)
    published.save(str(tmp_path / "published"))
    shutil.rmtree(tmp_path / "published" / "3_Normalize", ignore_errors=True)  # git and the hub keep no empty folder
    loaded = sentence_transformers_engine.load_sentence_transformers_model(
        tmp_path / "published", "float32", CPU, "model"
    )
    prompt_tokenizer = PromptTokenizer(load_tokenizer(model), catalog.find_method("as-published"))
    tokens = prompt_tokenizer.tokenize(tiny_models.SENTENCES[:4], "query", 64)
    expected = published.encode(list(tiny_models.SENTENCES[:4]))
    assert loaded.dimension == 16
    assert np.allclose(loaded.encode(list(tokens)), expected, atol=1e-5)


def test_other_modules_on_the_same_backbone_change_the_key(model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling

    peer = SentenceTransformer(str(model), processor_kwargs={"chat_template": None})
    known = {fingerprints.compute_modules_fingerprint(model)}
    for seed in (1, 2):
        torch.manual_seed(seed)
        parts = [peer[0], Pooling(tiny_models.WIDTH, pooling_mode="mean"), Dense(tiny_models.WIDTH, 16)]
        SentenceTransformer(modules=parts).save(str(tmp_path / str(seed)))
        known.add(fingerprints.compute_modules_fingerprint(tmp_path / str(seed)))
    assert len(known) == 3


def test_a_bare_model_has_no_published_pooling(model: Path) -> None:
    with pytest.raises(UsageError, match=r"no modules\.json"):
        sentence_transformers_engine.load_sentence_transformers_model(model, "float32", CPU, "model")


def test_the_record_names_its_engine(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "mean")
    (ours,), (theirs,) = run_cells(*line), run_cells(*line, "--engine", "sentence-transformers")
    assert (ours["engine"], theirs["engine"]) == ("transformers", "sentence-transformers")
    assert ours["settings_id"] != theirs["settings_id"]
    assert theirs["scores"] == pytest.approx(ours["scores"])
    skipped = run_command(*line, "--engine", "sentence-transformers", "--method", "echo")
    assert "pooling over part of the tokens" in skipped.output


def test_our_engine_does_not_support_published_pooling(model: Path, task: Path, out: Path) -> None:
    answer = run_command("run", "--model", model, "--task", task, "--out", out, "--method", "as-published", "--json")
    (cell,) = json.loads(answer.stdout)
    assert (cell["status"], answer.exit_code) == ("skipped", 2)
