"""vLLM on a CPU, in its own environment (`make test-vllm`); skipped if it is not installed."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from retbench.cards import catalog
from retbench.cards.engine import Engine
from retbench.cards.method import Method
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.external_encoders import TokenIdEncoder
from retbench.encoders.postprocessing import normalize_vectors
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone, vllm_engine, weights
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer
from retbench.errors import UsageError
from tests import tiny_models
from tests.test_run import run_cells, run_command
from tests.vllm_server import start_vllm_server

CPU = torch.device("cpu")
SMALL = "smollm2-135m-instruct-q4"


def smallest_cosine(folder: Path, method: Method, texts: tuple[str, ...]) -> float:
    spec = EncoderSpec("weights", method, "", 128, 128, "float32")
    ours = backbone.load_backbone(folder, "float32", CPU).with_method(method.attention, method.layer)
    prompt_tokenizer = PromptTokenizer(ours.tokenizer, method)
    theirs = TokenIdEncoder(spec, vllm_engine.load_vllm_model(folder, "float32", method, 256), prompt_tokenizer)
    tokens = prompt_tokenizer.tokenize(texts, "document", 128)
    our_vectors, their_vectors = BackboneEncoder(spec, ours, prompt_tokenizer).encode(tokens), theirs.encode(tokens)
    return float((our_vectors * their_vectors).sum(1).min())


@pytest.mark.parametrize("method", ["last", "mean", "eos", "promptreps", "mean:attention=bidirectional"])
def test_both_engines_agree(model: Path, method: str) -> None:
    assert smallest_cosine(model, catalog.find_method(method), tiny_models.SENTENCES) > 0.9999


@pytest.mark.usefixtures("user_weights")
@pytest.mark.parametrize("method", ["mean", "promptreps", "mean:attention=bidirectional"])
def test_both_engines_agree_on_a_real_model(method: str) -> None:
    folder = weights.obtain_weights(catalog.find_model_card(SMALL)).folder
    assert smallest_cosine(folder, catalog.find_method(method), tiny_models.SENTENCES[:12]) > 0.9999


def test_a_run_is_verified_against_vllm(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "last", "--set", "dtype=float32")
    (ours,), (theirs,) = run_cells(*line), run_cells(*line, "--engine", "vllm")
    assert theirs["scores"] == pytest.approx(ours["scores"])
    assert theirs["settings_id"] != ours["settings_id"]
    answer = run_command("verify", ours["record"], "--against", "vllm", "--weights", model, "--json")
    assert answer.exit_code == 0, answer.output
    actual = json.loads(answer.stdout)
    assert actual["engines"] == ["transformers", "vllm"]
    assert actual["cosine_min"] > 0.9999


def test_two_workers_give_the_scores_of_one(
    model: Path, task: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("run", "--model", model, "--task", task, "--method", "last", "--set", "dtype=float32", "--engine")
    (alone,) = run_cells(*line, "vllm", "--out", out)
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))  # else the vectors would be found
    (both,) = run_cells(*line, "vllm", "--out", tmp_path / "two", "--devices", "2")
    assert both["scores"] == pytest.approx(alone["scores"])


@pytest.mark.usefixtures("user_weights")
def test_a_run_of_a_real_model_is_verified_against_vllm(out: Path) -> None:
    line = ("run", "--model", SMALL, "--task", "stdlib-text", "--sample", 10, "--method", "promptreps", "--out", out)
    (cell,) = run_cells(*line, "--set", "dtype=float32")
    answer = run_command("verify", cell["record"], "--against", "vllm", "--json")
    assert answer.exit_code == 0, answer.output
    actual = json.loads(answer.stdout)
    assert actual["documents"] == 200
    assert actual["cosine_min"] > actual["tolerance"]["cosine"] == 0.9999
    assert abs(actual["scores"][0] - actual["scores"][1]) <= 0.005


def test_a_text_longer_than_the_context_is_an_error(model: Path) -> None:
    loaded = vllm_engine.load_vllm_model(model, "float32", catalog.find_method("last"), 4096)
    assert loaded.encode([np.arange(512) % tiny_models.VOCABULARY]).shape == (1, tiny_models.WIDTH)
    with pytest.raises(UsageError, match=r"513 tokens, but vLLM allows 512 for this model"):
        loaded.encode([np.arange(513) % tiny_models.VOCABULARY])


@pytest.fixture(scope="module")
def server_address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with start_vllm_server(model, "tiny", 256, log, "--runner", "pooling", "--convert", "embed") as address:
        yield address


def test_the_endpoint_engine_agrees_with_vllm_serve(
    model: Path, server_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", server_address)
    texts = list(tiny_models.SENTENCES[:10])
    actual = normalize_vectors(
        EmbeddingsClient(EndpointServer(Engine("endpoint", batch_size=4)), "tiny").embed_texts(texts)
    )
    ours = backbone.load_backbone(model, "float32", CPU)
    spec = EncoderSpec("weights", catalog.find_method("last"), "", 128, 128, "float32")
    encoder = BackboneEncoder(spec, ours, PromptTokenizer(ours.tokenizer, spec.method))
    assert (actual * encoder.encode(encoder.tokenize(texts, "query"))).sum(1).min() > 0.9999
    assert np.allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)
