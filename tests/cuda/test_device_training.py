"""One training step on the device: loss and gradient of the same step on the CPU in float32."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.recipe import Recipe, apply_recipe_options
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.tokenizers import load_tokenizer
from retbench.training import lora, packed_forward
from retbench.training.contrastive_batches import ContrastiveBatch, LabelledBatchSource
from retbench.training.gradient_caching import backward_batch
from retbench.training.train_forward import TrainableEncoder
from retbench.training.training_set import parse_training_rows
from tests import tiny_models
from tests.test_train_loop import train_layer

PAIRS = [
    (tiny_models.SENTENCES[row], tiny_models.SENTENCES[row + 1] + " " + tiny_models.SENTENCES[row + 2])
    for row in range(0, 24, 3)
]
CHANGES: dict[str, dict[str, str]] = {
    "one pass": {},
    "passes": {"batch.max_tokens": "200"},
    "caching": {"batch.max_tokens": "200", "batch.gradient_caching": "true"},
    "recompute": {"gradient_checkpointing": "true"},
}
Gradients = dict[str, torch.Tensor]


def batch(recipe: Recipe) -> ContrastiveBatch:
    training_set = parse_training_rows(
        "pairs", ((str(row), {"query": q, "positives": [p]}) for row, (q, p) in enumerate(PAIRS))
    )
    return LabelledBatchSource(training_set, recipe.contrastive, recipe.seed).build_batch(np.arange(len(PAIRS)), 0)


def build_encoder(folder: Path, recipe: Recipe, device: torch.device) -> TrainableEncoder:
    model = lora.prepare_for_training(lora.load_model(folder, recipe).to(device), recipe)
    generator = torch.Generator().manual_seed(1)
    with (
        torch.no_grad()
    ):  # replace the initial LoRA weights: they depend on the device, and the zero matrices would hide errors
        for weight in lora.get_trainable_weights(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator).to(device, weight.dtype) * 0.05 - weight * 0.999)
    prompt_tokenizer = PromptTokenizer(load_tokenizer(folder), recipe.method, recipe.method.instruction)
    return TrainableEncoder(model, prompt_tokenizer, recipe, True, device)


def run_step(folder: Path, recipe: Recipe, device: torch.device) -> tuple[float, Gradients]:
    encoder = build_encoder(folder, recipe, device)
    loss, _ = backward_batch(encoder, batch(recipe), 1.0, (1, 0, 0))
    trained = lora.get_trainable_weights(encoder.model)
    return loss, {name: w.grad.float().cpu() for name, w in trained.items() if w.grad is not None}


def compute_relative_error(actual: Gradients, expected: Gradients) -> float:
    """Compute the norm of the difference of two gradients, relative to the norm of `expected`."""
    assert actual.keys() == expected.keys()
    squared_error = sum(float((actual[name] - expected[name]).square().sum()) for name in expected)
    return float((squared_error / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return replace(
        apply_recipe_options(
            catalog.find_recipe("quick"), {"batch.contrastive_batch_size": "8", "batch.train_batch_size": "8"}
        ),
        max_minutes=None,
    )


@pytest.fixture(scope="module")
def cpu_step(model: Path, recipe: Recipe) -> tuple[float, Gradients]:
    return run_step(model, recipe, torch.device("cpu"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_float32_step_equals_the_cpu_step(
    model: Path, recipe: Recipe, change: dict[str, str], device: torch.device, cpu_step: tuple[float, Gradients]
) -> None:
    loss, slopes = run_step(model, apply_recipe_options(recipe, change), device)
    assert loss == pytest.approx(cpu_step[0], rel=1e-4)
    assert compute_relative_error(slopes, cpu_step[1]) < 2e-3


def test_a_bfloat16_step_is_close_to_the_cpu_step(
    model: Path, recipe: Recipe, device: torch.device, cpu_step: tuple[float, Gradients]
) -> None:
    short_recipe = replace(recipe, dtype="bfloat16")
    loss, slopes = run_step(model, short_recipe, device)
    trained = build_encoder(model, short_recipe, device).model
    assert packed_forward.supports_varlen(trained, [np.arange(3)]) is (device.type == "cuda"), "rows without padding"
    assert loss == pytest.approx(cpu_step[0], rel=0.05)
    assert compute_relative_error(slopes, cpu_step[1]) < 0.3


def test_a_full_finetuning_step_in_float32_equals_the_cpu_step(
    model: Path, recipe: Recipe, device: torch.device
) -> None:
    full_recipe = replace(recipe, lora=None)
    results = [run_full_step(model, full_recipe, where) for where in (device, torch.device("cpu"))]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert compute_relative_error(results[0][1], results[1][1]) < 2e-3


def run_full_step(folder: Path, recipe: Recipe, device: torch.device) -> tuple[float, Gradients]:
    model = lora.prepare_for_training(lora.load_model(folder, recipe).to(device), recipe)
    encoder = TrainableEncoder(model, PromptTokenizer(load_tokenizer(folder), recipe.method), recipe, True, device)
    loss, _ = backward_batch(encoder, batch(recipe), 1.0, (1, 0, 0))
    return loss, {name: w.grad.cpu() for name, w in lora.get_trainable_weights(model).items() if w.grad is not None}


def test_the_optimizer_resumes_on_the_device(tmp_path: Path, device: torch.device) -> None:
    whole, resumed = (train_layer(tmp_path / str(len(stops)), stops, str(device)) for stops in ((6,), (3, 6)))
    assert whole.optimizer.defaults["fused"] is (device.type == "cuda")
    assert torch.equal(resumed.weights["weight"], whole.weights["weight"])
    on_cpu = train_layer(tmp_path / "cpu", (6,)).weights["weight"]
    torch.testing.assert_close(whole.weights["weight"].cpu(), on_cpu, atol=1e-5, rtol=1e-4)
