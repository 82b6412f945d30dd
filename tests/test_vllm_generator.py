"""vLLM as a generator (`make test-vllm`): greedy text, guided lists, odds of yes, and its server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from retbench.cards import catalog
from retbench.cards.engine import Engine
from retbench.engines import weights
from retbench.engines.chat_client import ChatClient
from retbench.engines.generator import TransformersGenerator
from retbench.engines.http_client import EndpointServer
from retbench.engines.vllm_generator import VllmGenerator
from retbench.rerankers.llm_prompts import (
    build_listwise_prompt,
    build_order_pattern,
    build_pointwise_prompt,
    parse_order,
)
from tests import tiny_models
from tests.test_run import run_cells
from tests.test_vllm_engine import SMALL
from tests.vllm_server import start_vllm_server

CONTEXT = 1024
PASSAGES = tiny_models.SENTENCES[:5]
POINTWISE_PROMPTS = [
    build_pointwise_prompt("what warms the sea?", text, None, "") for text in tiny_models.SENTENCES[20:28]
]
PROMPTS = [
    "What is the capital of France?",
    build_listwise_prompt("what is good for the heart?", PASSAGES, [], ""),
    POINTWISE_PROMPTS[0],
]


def load_both_generators(folder: Path) -> tuple[TransformersGenerator, VllmGenerator]:
    ours = TransformersGenerator("small", folder, "weights", "float32", CONTEXT, torch.device("cpu"))
    return ours, VllmGenerator("small", folder, "weights", "float32", CONTEXT)


@pytest.fixture(scope="module")
def real_generators(tmp_path_factory: pytest.TempPathFactory) -> tuple[TransformersGenerator, VllmGenerator]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RETBENCH_CACHE")  # use the user's cache, so that weights are fetched once
        return load_both_generators(weights.obtain_weights(catalog.find_model_card(SMALL)).folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def random_generators(model: Path) -> tuple[TransformersGenerator, VllmGenerator]:
    return load_both_generators(model)


@pytest.fixture(params=["random_generators", "real_generators"])
def both_generators(request: pytest.FixtureRequest) -> tuple[TransformersGenerator, VllmGenerator]:
    generators: tuple[TransformersGenerator, VllmGenerator] = request.getfixturevalue(request.param)
    return generators


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_that_of_transformers(
    both_generators: tuple[TransformersGenerator, VllmGenerator], prompt: str
) -> None:
    ours, theirs = (one.generate(prompt, 24) for one in both_generators)
    assert theirs == ours


def test_odds_equal_those_of_transformers(both_generators: tuple[TransformersGenerator, VllmGenerator]) -> None:
    ours, theirs = (one.score_yes_no(POINTWISE_PROMPTS) for one in both_generators)
    assert [one.log_odds for one in theirs] == pytest.approx([one.log_odds for one in ours], abs=1e-3)
    assert [one.prompt_tokens for one in theirs] == [one.prompt_tokens for one in ours]
    assert (
        len({round(one.log_odds, 3) for one in theirs}) > len(POINTWISE_PROMPTS) // 2
    )  # the scores differ between prompts


def test_a_listwise_answer_follows_the_guided_pattern(
    both_generators: tuple[TransformersGenerator, VllmGenerator],
) -> None:
    form = build_order_pattern(len(PASSAGES))
    answer = both_generators[1].generate(PROMPTS[1], 60, form)
    assert re.fullmatch(form, answer.text)
    assert len(re.findall(r"\d+", answer.text)) == len(PASSAGES)
    assert not re.fullmatch(
        form, both_generators[1].generate(PROMPTS[1], 60).text
    )  # without guidance the answer does not match
    assert sorted(parse_order(answer.text, len(PASSAGES))[0]) == list(range(len(PASSAGES)))


def test_a_prompt_that_is_too_long_is_refused_before_generation(
    random_generators: tuple[TransformersGenerator, VllmGenerator],
) -> None:
    _, theirs = random_generators
    prompt = "word " * 400
    token_count = len(theirs.tokenize_prompt(prompt))
    assert theirs.fits_context(prompt, CONTEXT - token_count)
    assert not theirs.fits_context(prompt, CONTEXT - token_count + 1)


@pytest.mark.parametrize("reranker", ["listwise:engine=vllm,scores=raw", "pointwise:engine=vllm"])
def test_a_run_is_reranked_with_vllm(model: Path, task: Path, out: Path, reranker: str) -> None:
    argument = f"{reranker},model={model}"
    results = run_cells("run", "--model", "bm25", "--task", task, "--rerank", argument, "--out", out)
    record = json.loads((Path(results[-1]["record"]) / "record.json").read_text())
    (facts,) = record["cost"]["rerank"]
    assert facts["requests"] > 0
    assert facts["read"] > 0
    assert facts.get("unanswered", 0) == 0
    second_cells = run_cells("run", "--model", "bm25", "--task", task, "--rerank", argument, "--out", out)
    assert second_cells[-1]["cached"]


@pytest.fixture(scope="module")
def chat_client(
    real_generators: tuple[TransformersGenerator, VllmGenerator], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatClient]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with (
        start_vllm_server(real_generators[0].folder, "smollm2", CONTEXT, log) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RETBENCH_ENDPOINT", address)
        yield ChatClient("smollm2", EndpointServer(Engine("endpoint")), "here")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_server_generates_the_same_text(
    real_generators: tuple[TransformersGenerator, VllmGenerator], chat_client: ChatClient, prompt: str
) -> None:
    ours, theirs = real_generators[0].generate(prompt, 24), chat_client.generate(prompt, 24)
    assert theirs == ours


def test_a_server_gives_the_same_odds(
    real_generators: tuple[TransformersGenerator, VllmGenerator], chat_client: ChatClient
) -> None:
    ours, theirs = real_generators[0].score_yes_no(POINTWISE_PROMPTS), chat_client.score_yes_no(POINTWISE_PROMPTS)
    assert [one.log_odds for one in theirs] == pytest.approx([one.log_odds for one in ours], abs=0.1)


def test_a_server_reranks_a_run(
    chat_client: ChatClient,
    task: Path,
    out: Path,
) -> None:
    reranker = f"listwise:engine=endpoint,model={chat_client.name},written=60"
    results: list[dict[str, Any]] = run_cells(
        "run", "--model", "bm25", "--task", task, "--rerank", reranker, "--out", out
    )
    record = json.loads((Path(results[-1]["record"]) / "record.json").read_text())
    assert record["cost"]["rerank"][0]["requests"] > 0
    assert 0 <= record["cost"]["rerank"][0]["repair_rate"] <= 1
