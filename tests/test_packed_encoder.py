"""Our forward pass for encoders gives the states of transformers, for every supported model family."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from retbench.engines import fused_linear, packed_rows, peak_throughput
from retbench.engines.backbone import Backbone, find_packed_pass
from retbench.engines.packed_encoder import PackedEncoder, supports_packed_encoding

PADDING = 1
SIZES = {
    "vocab_size": 90, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 320, "pad_token_id": PADDING,
}  # fmt: skip
# (model type, what is special)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "a fused activation": ("bert", {"hidden_act": "relu"}),
    "another activation": ("bert", {"hidden_act": "gelu_new"}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "mpnet": ("mpnet", {}),
}
LENGTHS = (300, 150, 150, 129, 128, 7, 7, 2, 1)


def build_model(family: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(family, **{**SIZES, **config}))
    for name, weight in model.named_parameters():  # norms of one and biases of zero would hide errors
        torch.nn.init.normal_(weight, mean=float("LayerNorm.weight" in name), std=0.2)
    return model.eval()


def draw_token_ids() -> list[np.ndarray]:
    """Rows of all lengths; one has the padding token inside its text."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(2, SIZES["vocab_size"], length).astype(np.int32) for length in LENGTHS]
    rows[1][[3, 80]] = PADDING
    return rows


@torch.inference_mode()
def compute_plain_states(model: PreTrainedModel, rows: list[np.ndarray], layer: int = -1) -> torch.Tensor:
    states = [model(torch.from_numpy(row.astype(np.int64))[None], output_hidden_states=True) for row in rows]
    return torch.cat([output.hidden_states[layer][0] for output in states])


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernels", "plain kernels"])
@pytest.mark.parametrize(("family", "config"), ENCODERS.values(), ids=ENCODERS)
def test_states_equal_those_of_transformers(
    family: str, config: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_rows, "has_fast_attention", lambda dtype: fused)
    monkeypatch.setattr(fused_linear, "has_fused_kernel", lambda dtype: fused and torch.backends.mkldnn.is_available())
    model = build_model(family, **config)
    assert find_packed_pass(model) is PackedEncoder
    actual = PackedEncoder(model)(draw_token_ids(), causal=False)
    assert (actual - compute_plain_states(model, draw_token_ids())).abs().max() < 1e-5


@pytest.mark.parametrize(("family", "config"), ENCODERS.values(), ids=ENCODERS)
def test_bfloat16_is_as_exact_as_that_of_transformers(family: str, config: dict[str, Any]) -> None:
    rows, model = draw_token_ids(), build_model(family, **config)
    truth = compute_plain_states(model, rows)
    rounded: Any = model.bfloat16()
    errors = [
        torch.linalg.vector_norm(states.float() - truth)
        for states in (PackedEncoder(rounded)(rows, causal=False), compute_plain_states(rounded, rows))
    ]
    assert errors[0] < 1.1 * errors[1]


def test_a_layer_with_code_of_its_own_is_called() -> None:
    class DoubledLinear(torch.nn.Linear):
        """A linear layer that doubles its output."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    model: Any = build_model("bert")
    for layer in model.encoder.layer:
        layer.intermediate.dense.__class__ = layer.output.dense.__class__ = DoubledLinear
    actual = PackedEncoder(model)(draw_token_ids(), causal=False)
    assert torch.allclose(actual, compute_plain_states(model, draw_token_ids()), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2])
def test_an_earlier_layer_equals_that_of_transformers(layer: int) -> None:
    model = build_model("mpnet")
    actual = PackedEncoder(model)(draw_token_ids(), causal=False, layer=layer)
    assert torch.allclose(actual, compute_plain_states(model, draw_token_ids(), layer), atol=1e-5)


def test_small_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "has_fast_attention", lambda dtype: False)
    model, threads = build_model("mpnet"), torch.get_num_threads()
    expected = PackedEncoder(model)(draw_token_ids(), causal=False)
    for name, value in {"MLP_BLOCK_VALUES": 640, "QUERY_BLOCK": 30, "MAX_SCORES": 400}.items():
        monkeypatch.setattr(packed_rows, name, value)
    try:
        torch.set_num_threads(3)
        together = PackedEncoder(model)(draw_token_ids(), causal=False)
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(together, expected, atol=1e-5)


def test_other_models_are_left_to_transformers() -> None:
    class OwnBert(type(build_model("bert"))):  # type: ignore[misc]  # a model's own code with BERT's config
        """A model with the name of a known family and code of its own."""

    assert not supports_packed_encoding(OwnBert(AutoConfig.for_model("bert", **SIZES)))
    assert not supports_packed_encoding(build_model("bert", is_decoder=True))
    assert not supports_packed_encoding(AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SIZES)))
    assert not supports_packed_encoding(build_model("distilbert", dim=48, hidden_dim=80, n_heads=4, n_layers=1))


def test_a_backbone_uses_this_pass() -> None:
    model: Any = build_model("bert")
    backbone = Backbone(model, None, False, "float32", torch.device("cpu"))  # type: ignore[arg-type]  # no tokenizer
    assert backbone.kernel == "sdpa by length"  # transformers' own attention, which is the faster one in float32
    states = backbone.compute_states(draw_token_ids())
    assert states.offsets.tolist() == np.cumsum([0, *LENGTHS]).tolist()
    assert torch.allclose(states.flat, compute_plain_states(model, draw_token_ids()), atol=1e-5)


@pytest.mark.parametrize("layer", [None, 2, -1])
@pytest.mark.parametrize(("family", "linear_layers"), [("bert", 6), ("llama", 7)])
def test_the_peak_is_that_of_the_products_which_the_pass_runs(
    family: str, linear_layers: int, layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERT's pooler and the layers above the method's counted too: the peak was too low and its share too high."""
    counted: list[int] = []

    def count(part: torch.nn.Module, *_: object) -> float:
        counted.append(sum(peak_throughput.count_linear_shapes(part).values()))
        return 1.0

    monkeypatch.setattr(peak_throughput, "measure_peak_throughput", count)
    model: Any = build_model(family)
    backbone = Backbone(model, model, False, "float32", torch.device("cpu"), layer=layer)
    assert backbone.peak_throughput() == 1.0
    assert counted == [linear_layers * (2 if layer == 2 else 3)]
