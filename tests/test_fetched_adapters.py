"""Models whose hub repository is an adapter: fetch gets the parent and every adapter, and merges them in turn."""

import json
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
from tests.toy_hub import ToyHub, build_toy_adapter, toy_hub  # noqa: F401  # a fixture

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


PARENT = "qwen2.5-0.5b"


@pytest.mark.parametrize(("fetched", "asked"), [(PARENT, "Qwen/Qwen2.5-0.5B"), ("Qwen/Qwen2.5-0.5B", PARENT)])
def test_a_hub_id_and_its_card_share_the_fetched_weights(
    toy_hub: ToyHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fetched: str,
    asked: str,
) -> None:
    card = catalog.find_model_card(PARENT)
    toy_hub.add_model(card)
    monkeypatch.setattr("tests.toy_hub.REVISION", str(card.weights and card.weights.revision))  # the hub's newest
    local = weights.fetch_weights(catalog.find_model_card(fetched))
    other = catalog.find_model_card(asked)
    assert weights.find_local_weights(other) == local
    monkeypatch.setattr(toy_hub, "get_folder", None)  # nothing is downloaded again
    assert weights.fetch_weights(other) == local
    assert other.weights is not None
    newer = replace(other, weights=replace(other.weights, revision="b" * 40))
    assert weights.find_local_weights(newer) is None


def test_an_adapter_over_a_hub_id_finds_the_weights_of_its_card(toy_hub: ToyHub, tmp_path: Path) -> None:  # noqa: F811
    card = catalog.find_model_card(PARENT)
    toy_hub.add_model(card)
    adapter = tmp_path / "mine"
    build_toy_adapter(toy_hub.get_folder(str(card.weights and card.weights.repo), "models"), adapter)
    config = adapter / "adapter_config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps({**facts, "base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}))
    mine = catalog.find_model_card(str(adapter))
    with pytest.raises(MissingError, match="is an adapter, and its parent is missing") as error:
        weights.obtain_weights(mine)
    assert "retbench fetch Qwen/Qwen2.5-0.5B" in error.value.next_step
    assert f"`base_model_name_or_path` into {config}" in error.value.next_step
    weights.fetch_weights(card)
    assert weights.obtain_weights(mine).folder.is_dir()


def test_a_missing_folder_of_a_parent_is_not_to_be_fetched(toy_hub: ToyHub, tmp_path: Path) -> None:  # noqa: F811
    card = catalog.find_model_card(PARENT)
    toy_hub.add_model(card)
    build_toy_adapter(toy_hub.get_folder(str(card.weights and card.weights.repo), "models"), tmp_path / "mine")
    config = tmp_path / "mine" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/gone/parent"}))
    with pytest.raises(MissingError, match="its parent is missing") as error:
        weights.obtain_weights(catalog.find_model_card(str(tmp_path / "mine")))
    assert error.value.next_step.startswith("write the parent's folder as")


def test_a_suite_and_a_task_of_one_name_are_both_fetched() -> None:
    tasks = [row["name"] for row in fetch.list_cached(["msmarco"])]
    assert tasks == ["msmarco-dev", "trec-dl-2019", "trec-dl-2020", "msmarco"]
