"""Models whose hub repository is an adapter: fetch gets the parent and every adapter, and merges them in turn."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from retbench.cards import catalog, pins
from retbench.engines import weights
from retbench.errors import MissingError
from retbench.pipelines import fetch
from tests.toy_hub import ToyHub, toy_hub  # noqa: F401  # a fixture

NAME = "llm2vec-meta-llama-3-8b-instruct-mntp-unsup-simcse"


def compute_state(folder: Path) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.as_tensor(model(torch.arange(12)[None]).last_hidden_state)


def test_fetch_merges_two_adapters_into_the_parent_in_turn(toy_hub: ToyHub) -> None:  # noqa: F811
    import peft

    card = catalog.find_model_card(NAME)
    toy_hub.add_model(card)
    with pytest.raises(MissingError, match="has an adapter, not the weights of a model"):
        weights.obtain_weights(card)
    (row,) = fetch.fetch_by_name(NAME, lambda _: None)
    assert "error" not in row, row
    local = weights.obtain_weights(card)

    assert card.weights is not None
    parent = catalog.find_model_card(str(card.parent))
    plain = transformers.AutoModel.from_pretrained(
        toy_hub.get_folder(str(parent.weights and parent.weights.repo), "models"), dtype=torch.float32
    )
    for repo in (card.weights.base_adapter, card.weights.repo):
        adapter = toy_hub.get_folder(str(repo), "models")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
            plain = peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    with torch.inference_mode():
        expected = plain.eval()(torch.arange(12)[None]).last_hidden_state
    torch.testing.assert_close(compute_state(local.folder), expected, atol=1e-5, rtol=1e-5)
    unmerged = compute_state(weights.obtain_weights(parent).folder)
    assert (unmerged - expected).abs().max() > 0.01
    assert pins.read_pin("models", NAME) == pins.Pin(str(card.weights.revision), local.fingerprint)


def test_an_adapter_with_another_revision_is_fetched_again(toy_hub: ToyHub) -> None:  # noqa: F811
    card = catalog.find_model_card(NAME)
    toy_hub.add_model(card)
    weights.fetch_weights(card)
    assert card.weights is not None
    newer = replace(card, weights=replace(card.weights, revision="b" * 40))
    with pytest.raises(MissingError):
        weights.obtain_weights(newer)
    weights.fetch_weights(newer)
    assert weights.find_local_weights(newer) is not None


def test_a_suite_and_a_task_of_one_name_are_both_fetched() -> None:
    tasks = [row["name"] for row in fetch.list_cached(["msmarco"])]
    assert tasks == ["msmarco-dev", "trec-dl-2019", "trec-dl-2020", "msmarco"]
