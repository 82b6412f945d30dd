"""The packed training pass: states and gradients equal those of transformers' layers and peft's adapters."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retbench.cards import catalog
from retbench.cards.recipe import LoraSettings
from retbench.engines.padding import pad_rows
from retbench.training import lora as lora_module
from retbench.training import packed_forward
from retbench.training.row_dropout import derive_row_seeds, use_row_seeds
from tests.test_packed_decoder import FAMILIES, build_model

LENGTHS = (90, 40, 40, 40, 7, 7, 1)


def build_adapted_model(family: str, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    kind, config = FAMILIES[family]
    recipe = replace(catalog.find_recipe("quick"), lora=LoraSettings(r=4, **{"lora_dropout": 0.0, **lora}))
    model = lora_module.prepare_for_training(build_model(kind, dtype, **config), recipe)
    for weight in lora_module.get_trainable_weights(model).values():  # the zero matrices of LoRA would hide errors
        torch.nn.init.normal_(weight, std=0.1)
    return model


def draw_token_ids() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 100, size=length) for length in LENGTHS]


def compute_plain_states(model: Any, texts: list[np.ndarray]) -> Tensor:
    """Compute the states with transformers and peft, and remove the padding."""
    padded, lengths = pad_rows(texts)
    states = model(input_ids=padded, use_cache=False).last_hidden_state
    return torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])


def compute_gradients(model: Any, states: Tensor) -> dict[str, Tensor]:
    """Compute the gradient of a randomly weighted sum."""
    torch.manual_seed(1)
    (states.float() * torch.randn(states.shape)).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    actual = {
        name: weight.grad.clone()
        for name, weight in lora_module.get_trainable_weights(model).items()
        if weight.grad is not None
    }
    model.zero_grad()
    return actual


def assert_same_states_and_gradients(model: Any, tolerance: float) -> None:
    assert packed_forward.supports_model(model)
    ours, theirs = packed_forward.compute_states(model, draw_token_ids()), compute_plain_states(model, draw_token_ids())
    assert (ours - theirs).norm() < tolerance * theirs.norm()
    actual, expected = compute_gradients(model, ours), compute_gradients(model, theirs)
    assert actual.keys() == expected.keys() == lora_module.get_trainable_weights(model).keys()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() < tolerance * gradient.norm(), name


# with dynamic rope, transformers rotates a padded text by the longest text of the batch, so it is no reference
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "a rope that follows the length"])
def test_states_and_gradients_equal_those_of_transformers(family: str) -> None:
    assert_same_states_and_gradients(build_adapted_model(family), 1e-4)


def test_layers_without_an_adapter_are_unchanged() -> None:
    assert_same_states_and_gradients(build_adapted_model("qwen2", target_modules=("q_proj", "down_proj")), 1e-4)


def test_dropout_drops_what_it_drops_of_padded_rows() -> None:
    model = build_adapted_model("llama", lora_dropout=0.3)
    seeds = torch.from_numpy(derive_row_seeds((1, 2), range(len(LENGTHS))))
    undropped = packed_forward.compute_states(model.eval(), draw_token_ids())
    model.train()
    with use_row_seeds(seeds):
        assert_same_states_and_gradients(model, 1e-4)
        dropped = packed_forward.compute_states(model, draw_token_ids())
    assert (dropped - undropped).norm() > 0.05 * undropped.norm()
    one, other = (packed_forward.compute_states(model, draw_token_ids()) for _ in range(2))  # without seeds
    assert (one - other).norm() > 0.05 * one.norm()


def test_many_attention_scores_are_computed_in_row_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.training.autograd_functions.MAX_BLOCK_SCORES", 6 * 40 * 40)
    monkeypatch.setattr("retbench.training.autograd_functions.CHUNK_VALUES", 48 * 10)
    assert_same_states_and_gradients(build_adapted_model("llama"), 1e-4)


def test_bfloat16_is_as_close_to_float32_as_transformers_bfloat16() -> None:
    exact = build_adapted_model("llama")
    bfloat16_model = build_adapted_model("llama", torch.bfloat16)
    truth, ours = (
        compute_gradients(exact, compute_plain_states(exact, draw_token_ids())),
        compute_gradients(bfloat16_model, packed_forward.compute_states(bfloat16_model, draw_token_ids())),
    )
    with torch.autocast("cpu", torch.bfloat16):
        theirs = compute_gradients(bfloat16_model, compute_plain_states(bfloat16_model, draw_token_ids()))

    def off(actual: dict[str, Tensor]) -> float:
        return max(float((actual[name] - gradient).norm() / gradient.norm()) for name, gradient in truth.items())

    assert off(ours) < 1.2 * off(theirs)


def test_unsupported_models_are_left_to_transformers() -> None:
    assert not packed_forward.supports_model(build_model("llama"))
