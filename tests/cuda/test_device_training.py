"""One training step on the device: loss and gradient of the same step on the CPU in float32."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.recipe import Recipe, changed
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.tokenizers import load_tokenizer
from retbench.training import lora
from retbench.training.contrastive_batches import Group, Labelled
from retbench.training.gradient_caching import backward
from retbench.training.train_forward import Trainee
from retbench.training.training_set import of_rows
from tests import tiny_models

PAIRS = [
    (tiny_models.SENTENCES[row], tiny_models.SENTENCES[row + 1] + " " + tiny_models.SENTENCES[row + 2])
    for row in range(0, 24, 3)
]
CHANGES: dict[str, dict[str, str]] = {
    "one pass": {},
    "passes": {"batch.tokens": "200"},
    "caching": {"batch.tokens": "200", "batch.caching": "true"},
    "recompute": {"recompute": "true"},
}
Slopes = dict[str, torch.Tensor]


def group(recipe: Recipe) -> Group:
    training = of_rows("pairs", ((str(row), {"query": q, "positives": [p]}) for row, (q, p) in enumerate(PAIRS)))
    return Labelled(training, recipe.contrast, recipe.seed).group(np.arange(len(PAIRS)), 0)


def trainee(folder: Path, recipe: Recipe, device: torch.device) -> Trainee:
    model = lora.prepare(lora.load(folder, recipe).to(device), recipe)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # where adapters are drawn depends on the device; halves of zero would hide a mistake
        for weight in lora.trained(model).values():
            weight.add_(torch.randn(weight.shape, generator=draw).to(device, weight.dtype) * 0.05 - weight * 0.999)
    wording = PromptTokenizer(load_tokenizer(folder), recipe.method, recipe.method.instruction)
    return Trainee(model, wording, recipe, True, device)


def step(folder: Path, recipe: Recipe, device: torch.device) -> tuple[float, Slopes]:
    made = trainee(folder, recipe, device)
    loss, _ = backward(made, group(recipe), 1.0, (1, 0, 0))
    trained = lora.trained(made.model)
    return loss, {name: w.grad.float().cpu() for name, w in trained.items() if w.grad is not None}


def off(found: Slopes, wanted: Slopes) -> float:
    """Of the whole gradient, relative to its length."""
    assert found.keys() == wanted.keys()
    away = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return float((away / sum(float(slope.square().sum()) for slope in wanted.values())) ** 0.5)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return replace(
        changed(catalog.find_recipe("quick"), {"batch.contrast": "8", "batch.update": "8"}), max_minutes=None
    )


@pytest.fixture(scope="module")
def exact(model: Path, recipe: Recipe) -> tuple[float, Slopes]:
    return step(model, recipe, torch.device("cpu"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_step_in_float32(
    model: Path, recipe: Recipe, change: dict[str, str], device: torch.device, exact: tuple[float, Slopes]
) -> None:
    loss, slopes = step(model, changed(recipe, change), device)
    assert loss == pytest.approx(exact[0], rel=1e-4)
    assert off(slopes, exact[1]) < 2e-3


def test_a_step_in_bfloat16(model: Path, recipe: Recipe, device: torch.device, exact: tuple[float, Slopes]) -> None:
    loss, slopes = step(model, replace(recipe, dtype="bfloat16"), device)
    assert loss == pytest.approx(exact[0], rel=0.05)
    assert off(slopes, exact[1]) < 0.3


def test_all_weights_in_float32(model: Path, recipe: Recipe, device: torch.device) -> None:
    whole = replace(recipe, lora=None)
    found = [step_of_all(model, whole, place) for place in (device, torch.device("cpu"))]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert off(found[0][1], found[1][1]) < 2e-3


def step_of_all(folder: Path, recipe: Recipe, device: torch.device) -> tuple[float, Slopes]:
    model = lora.prepare(lora.load(folder, recipe).to(device), recipe)
    made = Trainee(model, PromptTokenizer(load_tokenizer(folder), recipe.method), recipe, True, device)
    loss, _ = backward(made, group(recipe), 1.0, (1, 0, 0))
    return loss, {name: w.grad.cpu() for name, w in lora.trained(model).items() if w.grad is not None}
