"""`--set dtype=int8`: quantized linear layers compute what integer arithmetic in numpy computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retbench.engines import int8_linear
from retbench.engines.int8_linear import Int8Linear, quantize_linear_layers
from retbench.engines.packed_decoder import PackedDecoder
from retbench.engines.peak_throughput import count_linear_shapes
from retbench.errors import UsageError
from tests import test_packed_decoder as decoder_tests
from tests.test_run import run_command


def compute_with_integers(layer: nn.Linear, states: torch.Tensor) -> np.ndarray:
    """W8A8 in numpy: a scale per row of states in 8 bits, a scale per row of weights in 7 bits, exact sums."""
    weight, rows = layer.weight.detach().numpy().astype(np.float64), states.numpy().astype(np.float64)
    weight_scales, row_scales = np.abs(weight).max(axis=1) / 63, np.abs(rows).max(axis=1, keepdims=True) / 127
    products = np.rint(rows / row_scales).astype(np.int64) @ np.rint(weight.T / weight_scales).astype(np.int64)
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    return np.asarray(products * row_scales * weight_scales + bias)


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_layer_equals_integer_arithmetic(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_linear, "BLOCK_VALUES", 700)  # several blocks
    torch.manual_seed(1)
    layer, states = nn.Linear(96, 50, bias=bias), torch.randn(33, 96) * torch.rand(33, 1)
    actual = Int8Linear(layer)(states.view(3, 11, 96)).view(33, 50).numpy()
    assert np.abs(actual - compute_with_integers(layer, states)).max() < 1e-5
    assert np.abs(actual - layer(states).numpy()).max() < 0.05  # and is close to the layer itself


@torch.inference_mode()
def test_the_largest_sums_are_exact() -> None:
    layer = nn.Linear(512, 3, bias=False)
    layer.weight[:] = torch.tensor([[1.0], [-1.0], [0.5]])
    states = torch.cat((torch.ones(1, 512), -torch.ones(1, 512), torch.zeros(1, 512)))
    expected = torch.tensor([[512.0, -512, 256], [-512, 512, -256], [0, 0, 0]])
    assert torch.allclose(Int8Linear(layer)(states), expected, rtol=1e-6)


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others() -> None:
    layer = Int8Linear(nn.Linear(64, 40))
    states = torch.randn(300, 64)
    together = layer(torch.cat((states, 1000 * torch.randn(5, 64))))
    assert torch.equal(together[:7], layer(states[:7]))
    assert torch.equal(together[299:300], layer(states[299:]))


def test_a_quantized_decoder_stays_close_and_counts_the_same_layers() -> None:
    model = decoder_tests.build_model("qwen3")
    exact, shapes = (
        decoder_tests.compute_plain_states(model, decoder_tests.draw_token_ids()),
        count_linear_shapes(model),
    )
    quantize_linear_layers(model)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert count_linear_shapes(model) == shapes
    actual = PackedDecoder(model)(decoder_tests.draw_token_ids(), causal=True)
    assert float(torch.cosine_similarity(actual, exact, dim=1).mean()) > 0.99


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="no linear layers"):
        quantize_linear_layers(nn.Sequential(nn.Embedding(3, 4)))


@pytest.mark.parametrize("words", [("--engine", "sentence-transformers"), ()], ids=["another engine", "a GPU"])
def test_int8_is_refused_where_it_does_not_exist(
    model: Path, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...]
) -> None:
    if not words:
        monkeypatch.setattr("retbench.pipelines.models.model.get_device_type", lambda: "cuda")
    line = ("run", "--model", model, "--task", task, "--method", "mean", "--out", out, "--set", "dtype=int8", *words)
    answer = run_command(*line)
    assert answer.exit_code != 0
    assert "dtype=int8 computes texts on a CPU by the engine transformers" in answer.output
