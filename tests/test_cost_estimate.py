"""`retbench plan`: the cost formulas computed by hand, and the printed table."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards.model import ModelCard, ModelShape
from retbench.cli.main import app
from retbench.errors import UsageError
from retbench.pipelines import estimate_cost

CARD = ModelCard("m", parameters=1_000_000, shape=ModelShape(layers=2, width=100, vocabulary=1000))
CORPUS = estimate_cost.CorpusSize(documents=1000, queries=10, tokens=50, query_tokens=20)


def test_flops_count_layers_and_causal_attention() -> None:
    # 900,000 weights beside the embeddings, a product and a sum each; 2 layers x 100 wide x 50 tokens, twice
    assert estimate_cost.compute_flop_per_token(CARD, 50) == 2 * 900_000 + 2 * 2 * 100 * 50


def test_an_estimate_computed_by_hand() -> None:
    found = estimate_cost.estimate_cost(
        CARD, CORPUS, estimate_cost.DeviceSpec(count=4, tokens_per_second=10, price=3.0), {}
    )
    assert found.tokens == 1000 * 50 + 10 * 20
    assert found.device_hours == pytest.approx(50_200 / 10 / 3600)
    assert found.hours == pytest.approx(found.device_hours / 4)
    assert found.cost == pytest.approx(found.device_hours * 3)
    assert found.disk_bytes == 1010 * (8 + 4 * 100)
    assert found.network_bytes == 4 * 2_000_000 + 50_200 * 4.5 + found.disk_bytes
    assert (found.search_flop, found.search_seconds) == (2 * 1000 * 10 * 100, None)


def test_peak_flops_and_utilisation_give_the_rate() -> None:
    used = estimate_cost.DeviceSpec(peak=1e9, utilization=0.5)
    found = estimate_cost.estimate_cost(CARD, CORPUS, used, {"dimensions": 50, "vector_dtype": "fp16"})
    assert found.tokens_per_second == pytest.approx(0.5e9 / found.flop_per_token)
    assert found.search_seconds == pytest.approx(2 * 1000 * 10 * 50 / 0.5e9)
    assert found.disk_bytes == 1010 * (8 + 2 * 50)
    assert found.cost is None


def test_search_is_at_least_as_long_as_reading_the_vectors() -> None:
    fast = estimate_cost.DeviceSpec(peak=1e15)
    found = estimate_cost.estimate_cost(CARD, CORPUS, fast, {"vector_dtype": "int8"})
    assert found.search_seconds == pytest.approx(1000 * 100 * 4 / estimate_cost.SEARCH_BYTES_PER_SECOND)


WRONG_ARGUMENTS: dict[str, Any] = {
    "no speed": lambda: estimate_cost.estimate_cost(CARD, CORPUS, estimate_cost.DeviceSpec(), {}),
    "no shape": lambda: estimate_cost.estimate_cost(
        ModelCard("bm25"), CORPUS, estimate_cost.DeviceSpec(tokens_per_second=1), {}
    ),
    "nothing to count": lambda: estimate_cost.resolve_corpus_size(None, None, None, 80),
    "a setting that changes nothing here": lambda: estimate_cost.check_overrides({"dtype": "float32"}),
    "no such form": lambda: estimate_cost.check_overrides({"vector_dtype": "fp8"}),
    "no width": lambda: estimate_cost.check_overrides({"dimensions": 0}),
}


@pytest.mark.parametrize("ask", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_an_estimate_that_is_not_possible_is_reported(ask: Any) -> None:
    with pytest.raises(UsageError) as problem:
        ask()
    assert problem.value.next_step


def test_the_command_prints_one_line_per_model() -> None:
    words = ["plan", "--model", "qwen2.5-0.5b", "--model", "qwen2.5-7b", "--documents", "1000000", "--rate", "1000"]
    ran = CliRunner().invoke(app, [*words, "--json"])
    small, large = json.loads(ran.stdout)
    assert ran.exit_code == 0
    assert small["device_hours"] == large["device_hours"] == pytest.approx((1e6 * 80 + 1000 * 16) / 1000 / 3600)
    assert small["disk_bytes"] < large["disk_bytes"]
    table = CliRunner().invoke(app, words).stdout
    assert "1,000,000 documents of 80 tokens" in table
    assert "qwen2.5-7b" in table


def test_document_counts_come_from_the_task() -> None:
    ran = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--task", "scifact", "--peak", "989", "--json"])
    (found,) = json.loads(ran.stdout)
    assert (found["documents"], found["queries"]) == (5183, 300)


def test_a_setting_without_a_value_suggests_a_valid_one() -> None:
    ran = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--documents", "10", "--set", "dimensions"])
    assert ran.exit_code == 2
    assert "for example --set dimensions=256" in ran.output


def test_a_throughput_is_required() -> None:
    ran = CliRunner().invoke(app, ["plan", "--model", "qwen2.5-7b", "--documents", "10", "--json"])
    assert ran.exit_code == 2
    assert "--rate" in json.loads(ran.stdout)["next_step"]
