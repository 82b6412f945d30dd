"""Dropout per text: the same values are dropped in any pass, process and device, and they look random."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retbench.cards.recipe import BatchSettings, ContrastiveSettings, LoraSettings
from retbench.training import lora, row_dropout
from retbench.training.contrastive_batches import LabelledBatchSource
from retbench.training.gradient_caching import backward_batch
from retbench.training.row_dropout import RowDropout, compute_hashes, derive_row_seeds, replace_dropout, use_row_seeds
from tests import tiny_models
from tests.test_train_loop import RECIPE, build_encoder, build_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("caching", [True, False])
def test_the_gradient_does_not_depend_on_passes(folder: Path, caching: bool, checkpointing: bool) -> None:
    recipe = replace(RECIPE, lora=LoraSettings(4, 8, 0.3), contrastive=ContrastiveSettings(0.1, 2))
    batch = LabelledBatchSource(build_pairs(), recipe.contrastive, 1).build_batch(np.arange(6), 0)
    results = []
    for max_tokens, is_cached, is_checkpointed in ((100_000, False, False), (60, caching, checkpointing)):
        settings = BatchSettings(4, 8, max_tokens=max_tokens, gradient_caching=is_cached)
        encoder = build_encoder(folder, replace(recipe, batch=settings, gradient_checkpointing=is_checkpointed))
        loss, _ = backward_batch(encoder, batch, 1.0, (1, 2))
        weights = lora.get_trainable_weights(encoder.model).values()
        results.append((loss, torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])))
    (loss, gradient), (other_loss, other_gradient) = results
    assert other_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(gradient, other_gradient, atol=1e-5, rtol=1e-4)
    without_dropout = build_encoder(folder, replace(recipe, lora=LoraSettings(4, 8, 0.0)))
    undropped, _ = backward_batch(without_dropout, batch, 1.0, (1, 2))
    assert abs(undropped - loss) > 1e-3  # dropout changed the loss


def test_hashes_against_plain_integers() -> None:
    def mix(value: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            value = (value ^ (value >> shift)) * factor % 2**32
        return value ^ (value >> 16)

    seeds = torch.tensor([5, -7], dtype=torch.int32)
    hashes = compute_hashes(seeds, 0xFFFF1234, torch.Size([3, 2]))
    for row, seed in enumerate(seeds.tolist()):
        for token in range(3):
            for channel in range(2):
                value = mix(seed % 2**32 ^ 0xFFFF1234)
                for index in (token, channel):
                    value = mix(value ^ ((index + 1) * 0x9E3779B9 % 2**32))
                assert int(hashes[row, token, channel]) % 2**32 == value


def test_dropped_values_look_random() -> None:
    layers = [RowDropout(0.1, salt).train() for salt in (1, 2)]
    seeds = torch.from_numpy(derive_row_seeds((1, 0, 0), range(40)))
    states = torch.ones(40, 50, 64)
    with use_row_seeds(seeds):
        one, other = (layer(states) for layer in layers)
    dropped = one == 0
    assert float(one.mean()) == pytest.approx(1, abs=0.01)
    assert one.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    for axes in ((0, 1), (0, 2), (1, 2)):  # no channel, token or row is dropped much more often
        shares = dropped.float().mean(axes)
        values = dropped.numel() / len(shares)
        assert float((shares - 0.1).abs().max()) < 5 * (0.09 / values) ** 0.5
    neighbours = [dropped.roll(1, axis) for axis in (0, 1, 2)]
    for shifted in (*neighbours, other == 0):  # the last is another layer
        both = float((dropped & shifted).float().mean())
        assert both == pytest.approx(0.01, abs=0.0015)


def test_a_row_is_the_same_alone_and_padded() -> None:
    layer = RowDropout(0.5, 3).train()
    seeds = torch.tensor([11, 12], dtype=torch.int32)
    states = torch.randn(2, 9, 8)
    with use_row_seeds(seeds):
        together = layer(states)
    with use_row_seeds(seeds[1:]):
        alone = layer(states[1:, :5])
    assert torch.equal(together[1, :5], alone[0])
    assert torch.equal(layer.eval()(states), states)


def test_every_dropout_of_a_model_is_replaced_and_has_its_own_salt() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2)), nn.Dropout(0.0))
    replace_dropout(model)
    found = [module for module in model.modules() if isinstance(module, RowDropout)]
    assert [module.p for module in found] == [0.1, 0.2]
    assert found[0].salt != found[1].salt
    assert isinstance(model[2], nn.Dropout)
    assert not row_dropout.current_seeds
