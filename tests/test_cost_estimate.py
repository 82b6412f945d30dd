"""`retbench plan`: the cost formulas computed by hand, and the printed table."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards.model import ModelCard, ModelShape
from retbench.cli.main import app
from retbench.errors import UsageError
from retbench.pipelines import estimate_cost
from retbench.pipelines.models.overrides import Overrides

CARD = ModelCard("m", parameters=1_000_000, shape=ModelShape(layers=2, width=100, vocabulary=1000))
CORPUS = estimate_cost.CorpusSize(documents=1000, queries=10, tokens=50, query_tokens=20)


def test_flops_count_layers_and_causal_attention() -> None:
    # 2 FLOP for each of the 900,000 weights without embeddings; attention: 2 x 2 layers x width 100 x 50 tokens
    assert estimate_cost.compute_flop_per_token(CARD, 50) == 2 * 900_000 + 2 * 2 * 100 * 50


def test_an_estimate_computed_by_hand() -> None:
    estimate = estimate_cost.estimate_cost(
        CARD, CORPUS, estimate_cost.DeviceSpec(count=4, tokens_per_second=10, price=3.0), Overrides()
    )
    assert estimate.tokens == 1000 * 50 + 10 * 20
    assert estimate.device_hours == pytest.approx(50_200 / 10 / 3600)
    assert estimate.hours == pytest.approx(estimate.device_hours / 4)
    assert estimate.cost == pytest.approx(estimate.device_hours * 3)
    assert estimate.disk_bytes == 1010 * (8 + 4 * 100)
    assert estimate.network_bytes == 4 * 2_000_000 + 50_200 * 4.5 + estimate.disk_bytes
    assert (estimate.search_flop, estimate.search_seconds) == (2 * 1000 * 10 * 100, None)


def test_a_cross_encoder_reads_pairs() -> None:
    judge = ModelCard("judge", kind="cross-encoder", parameters=1_000_000, max_length=60)
    devices = estimate_cost.DeviceSpec(tokens_per_second=10)
    estimate = estimate_cost.estimate_cost(judge, CORPUS, devices, Overrides(depth=30))
    assert estimate.tokens == 10 * 30 * 60  # queries x candidates x a pair of 70 tokens, cut at 60
    assert estimate.device_hours == pytest.approx(18_000 / 10 / 3600)
    assert (estimate.flop_per_token, estimate.disk_bytes, estimate.search_seconds) == (2_000_000, 0, None)


def test_peak_flops_and_utilisation_give_the_rate() -> None:
    used = estimate_cost.DeviceSpec(peak=1e9, utilization=0.5)
    estimate = estimate_cost.estimate_cost(CARD, CORPUS, used, Overrides(dimensions=50, vector_dtype="fp16"))
    assert estimate.tokens_per_second == pytest.approx(0.5e9 / estimate.flop_per_token)
    assert estimate.search_seconds == pytest.approx(2 * 1000 * 10 * 50 / 0.5e9)
    assert estimate.disk_bytes == 1010 * (8 + 2 * 50)
    assert estimate.cost is None


def test_search_is_at_least_as_long_as_reading_the_vectors() -> None:
    fast = estimate_cost.DeviceSpec(peak=1e15)
    estimate = estimate_cost.estimate_cost(CARD, CORPUS, fast, Overrides(vector_dtype="int8"))
    assert estimate.search_seconds == pytest.approx(1000 * 100 * 4 / estimate_cost.SEARCH_BYTES_PER_SECOND)


WRONG_ARGUMENTS: dict[str, Any] = {
    "no speed": lambda: estimate_cost.estimate_cost(CARD, CORPUS, estimate_cost.DeviceSpec(), Overrides()),
    "no shape": lambda: estimate_cost.estimate_cost(
        ModelCard("bm25"), CORPUS, estimate_cost.DeviceSpec(tokens_per_second=1), Overrides()
    ),
    "nothing to count": lambda: estimate_cost.resolve_corpus_size(None, None, None, 80),
    "no candidates": lambda: estimate_cost.check_overrides(
        Overrides(depth=0), [ModelCard("judge", kind="cross-encoder", parameters=1)]
    ),
    "candidates of an encoder": lambda: estimate_cost.check_overrides(Overrides(depth=10), [CARD]),
    "a setting that changes nothing here": lambda: estimate_cost.check_overrides(Overrides(dtype="float32")),
}


@pytest.mark.parametrize("ask", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_an_estimate_that_is_not_possible_is_reported(ask: Any) -> None:
    with pytest.raises(UsageError) as problem:
        ask()
    assert problem.value.next_step


def test_the_command_prints_one_line_per_model() -> None:
    words = ["plan", "--model", "qwen2.5-0.5b", "--model", "qwen2.5-7b", "--documents", "1000000", "--rate", "1000"]
    answer = CliRunner().invoke(app, [*words, "--json"])
    small, large = json.loads(answer.stdout)
    assert answer.exit_code == 0
    assert small["device_hours"] == large["device_hours"] == pytest.approx((1e6 * 80 + 1000 * 16) / 1000 / 3600)
    assert small["disk_bytes"] < large["disk_bytes"]
    table = CliRunner().invoke(app, words).stdout
    assert "1,000,000 documents of 80 tokens" in table
    assert "qwen2.5-7b" in table


def test_document_counts_come_from_the_task() -> None:
    answer = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--task", "scifact", "--peak", "989", "--json"])
    (estimate,) = json.loads(answer.stdout)
    assert (estimate["documents"], estimate["queries"]) == (5183, 300)


@pytest.mark.parametrize("setting", ["depth=10", "dimensions=0", "dimensions=wide", "vector_dtype=fp8", "width=3"])
def test_a_wrong_setting_is_refused(setting: str) -> None:
    answer = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--documents", "10", "--set", setting])
    assert answer.exit_code == 2
    assert setting.partition("=")[0] in answer.output


def test_a_setting_without_a_value_suggests_a_valid_one() -> None:
    answer = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--documents", "10", "--set", "dimensions"])
    assert answer.exit_code == 2
    assert "for example --set dimensions=256" in answer.output


def test_a_throughput_is_required() -> None:
    answer = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--documents", "10", "--json"])
    assert answer.exit_code == 2
    assert "--rate" in json.loads(answer.stdout)["next_step"]
