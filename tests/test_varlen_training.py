"""Training on GPUs: packed rows give the loss and gradient of padded rows (the kernel is a stand-in here); sharding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards.model import Dtype
from retbench.cards.recipe import LoraSettings, Recipe
from retbench.engines import varlen
from retbench.training import distributed, fsdp, lora, packed_forward
from retbench.training.contrastive_batches import LabelledBatchSource
from retbench.training.gradient_caching import backward_batch
from retbench.training.train_forward import TrainableEncoder
from tests import tiny_models
from tests.test_train_loop import RECIPE, build_encoder, build_pairs
from tests.test_varlen import attend_one_by_one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def without_our_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_forward, "supports_model", lambda _: False)  # as on a GPU


def compute_step(encoder: TrainableEncoder) -> tuple[float, dict[str, torch.Tensor]]:
    source = LabelledBatchSource(build_pairs(), encoder.recipe.contrastive, 1)
    loss, _ = backward_batch(encoder, source.build_batch(np.arange(4), 0), 1.0, (1, 0, 0))
    weights = lora.get_trainable_weights(encoder.model)
    return loss, {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def use_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the stand-in kernel run; returns the tokens of each call."""
    calls: list[int] = []

    def attend(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(len(query))
        return attend_one_by_one(query, *arguments)

    monkeypatch.setattr(varlen, "find_kernel", lambda *_: attend)
    return calls


CHANGES: dict[str, dict[str, Any]] = {
    "adapters": {},
    "dropout": {"lora": LoraSettings(4, 8, 0.3)},
    "all weights": {"lora": None},
    "gradient caching": {"batch": replace(RECIPE.batch, gradient_caching=True), "lora": LoraSettings(4, 8, 0.3)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_packed_rows_give_the_gradient_of_padded_rows(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Recipe = replace(RECIPE, **changes)
    expected_loss, expected = compute_step(build_encoder(folder, recipe))
    calls = use_kernel(monkeypatch)
    loss, gradients = compute_step(build_encoder(folder, recipe))
    assert calls
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_what_the_kernel_cannot_do_is_padded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that run again in the backward pass have no packed batch; the kernel knows no dropout of attention."""
    calls = use_kernel(monkeypatch)
    compute_step(build_encoder(folder, replace(RECIPE, gradient_checkpointing=True)))
    dropped = build_encoder(folder)
    packed_forward.get_backbone(dropped.model).config.attention_dropout = 0.1
    assert not packed_forward.supports_varlen(dropped.model, [np.arange(3)])
    compute_step(dropped)
    assert not calls


@pytest.mark.parametrize(("dtype", "travelling"), [("bfloat16", torch.bfloat16), ("float32", None)])
def test_sharded_weights_travel_in_the_dtype_of_the_recipe(
    dtype: Dtype, travelling: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[Any] = []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_: None)
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda _, mesh, mp_policy: policies.append(mp_policy))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)]))
    assert fsdp.shard_model(model, torch.device("cpu"), dtype) is model
    assert [policy.param_dtype for policy in policies] == [travelling] * 4, "three blocks and the model"
    assert {policy.reduce_dtype for policy in policies} == {torch.float32 if travelling else None}
