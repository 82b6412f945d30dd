"""Our forward pass gives the states of transformers, for every supported model family."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from retbench.engines import fused_linear, packed_decoder, packed_rows
from retbench.engines.packed_decoder import PackedDecoder, supports_packed_decoding

SIZES = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 400,
}
# (model type, what is special)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3's rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "a rope that follows the length": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            "max_position_embeddings": 100,
        },
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "one key for all": ("llama", {"num_key_value_heads": 1}),
    "a key each": ("llama", {"num_key_value_heads": 6}),
    "wide heads": ("qwen3", {"head_dim": 16}),
}
LENGTHS = (
    300,
    150,
    150,
    150,
    129,
    128,
    7,
    7,
    2,
    1,
)  # longer and shorter than a block of queries; equal lengths alone and in groups


def build_model(family: str, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(family, **{**SIZES, **config}))
    for name, weight in model.named_parameters():  # norms of one and biases of zero would hide errors
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.2)
    return model.to(dtype).eval()


def build_decoder(model: PreTrainedModel) -> PackedDecoder:
    assert supports_packed_decoding(model)
    return PackedDecoder(model)


def draw_token_ids(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, SIZES["vocab_size"], length).astype(np.int32) for length in lengths]


@torch.inference_mode()
def compute_plain_states(
    model: PreTrainedModel, texts: list[np.ndarray], layer: int = -1, **expected: Any
) -> torch.Tensor:
    states = []
    for ids in texts:
        getattr(
            model, "rotary_emb", model
        ).max_seq_len_cached = 0  # otherwise the rotary angles of a long text are reused for the next one
        output = model(
            torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True, use_cache=False, **expected
        )
        states.append(output.hidden_states[layer][0])
    return torch.cat(states)


def compute_min_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.cosine_similarity(first.float(), second.float(), dim=1).min())


@pytest.mark.parametrize("fast", [True, False], ids=["fused kernels", "plain kernels"])
@pytest.mark.parametrize(("family", "config"), FAMILIES.values(), ids=FAMILIES)
def test_states_equal_those_of_transformers(
    family: str, config: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_rows, "has_fast_attention", lambda dtype: fast)
    monkeypatch.setattr(fused_linear, "has_fused_kernel", lambda dtype: fast and torch.backends.mkldnn.is_available())
    model = build_model(family, **config)
    expected, decoder = compute_plain_states(model, draw_token_ids()), build_decoder(model)
    actual = decoder(draw_token_ids(), causal=True)
    assert torch.allclose(actual, expected, atol=1e-4, rtol=1e-3)
    assert compute_min_cosine(actual, expected) > 0.99999


def test_bfloat16_is_as_close_to_float32_as_transformers_bfloat16() -> None:
    exact, short = compute_plain_states(build_model("qwen2"), draw_token_ids()), build_model("qwen2", torch.bfloat16)
    decoder = build_decoder(short)
    assert (
        compute_min_cosine(decoder(draw_token_ids(), causal=True), exact)
        > compute_min_cosine(compute_plain_states(short, draw_token_ids()), exact) - 1e-3
    )


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -4])
def test_an_earlier_layer_equals_that_of_transformers(layer: int) -> None:
    model = build_model("qwen2")
    decoder = build_decoder(model)
    assert torch.allclose(
        decoder(draw_token_ids(), causal=True, layer=layer),
        compute_plain_states(model, draw_token_ids(), layer),
        atol=1e-4,
    )


def test_bidirectional_attention_equals_transformers() -> None:
    model = build_model("llama")
    decoder = build_decoder(model)
    expected = compute_plain_states(model, draw_token_ids(), is_causal=False, attention_mask=None)
    assert compute_min_cosine(decoder(draw_token_ids(), causal=False), decoder(draw_token_ids(), causal=True)) < 0.99
    assert torch.allclose(decoder(draw_token_ids(), causal=False), expected, atol=1e-4)


@pytest.mark.parametrize("threads", [2, 3, 20])
def test_threads_change_nothing(threads: int) -> None:
    model, before = build_model("qwen2"), torch.get_num_threads()
    decoder = build_decoder(model)
    single_threaded = decoder(draw_token_ids(), causal=True)
    try:
        torch.set_num_threads(threads)
        together = decoder(draw_token_ids(), causal=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(together, single_threaded, atol=1e-5)


def test_threads_get_about_as_many_tokens_each() -> None:
    lengths = [512, 512, 512, 498, 480, 470, 440, 423]
    rows = [np.zeros(length, dtype=np.int64) for length in lengths]
    groups = packed_rows.split_rows(rows, 2)
    assert sorted(at for group in groups for at in group) == list(range(len(rows)))
    assert all(group == sorted(group) for group in groups)
    tokens = [sum(lengths[at] for at in group) for group in groups]
    assert sorted(tokens) == [1917, 1930]  # the first four rows have 2,034 tokens, the others 1,813


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    decoder = build_decoder(model)
    expected = decoder(draw_token_ids(), causal=True)
    monkeypatch.setattr(packed_rows, "has_fast_attention", lambda dtype: False)  # which has no blocks
    monkeypatch.setattr(packed_decoder, "NORM_BLOCK_VECTORS", 3)
    for name, value in {"MLP_BLOCK_VALUES": 640, "QUERY_BLOCK": 3, "MAX_SCORES": 40}.items():
        monkeypatch.setattr(packed_rows, name, value)
    assert torch.allclose(decoder(draw_token_ids(), causal=True), expected, atol=1e-5)


# (model type, config) that only transformers supports
UNSUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "a sliding window": ("mistral", {"sliding_window": 64}),
    "some layers with a window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    ),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "another family": ("gemma", {}),
    "an encoder": ("bert", {}),
}


@pytest.mark.parametrize(("family", "config"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_models_are_left_to_transformers(family: str, config: dict[str, Any]) -> None:
    assert not supports_packed_decoding(build_model(family, **config))


def test_changed_weights_and_replaced_layers_are_used() -> None:
    model = build_model("qwen2")
    decoder = build_decoder(model)
    with torch.no_grad():  # change weights in place, as an optimizer does
        model.layers[0].self_attn.q_proj.weight.add_(0.1)
    assert torch.allclose(
        decoder(draw_token_ids(), causal=True), compute_plain_states(model, draw_token_ids()), atol=1e-4
    )
    model.layers[1].mlp.up_proj.weight.data = (
        model.layers[1].mlp.up_proj.weight.data * 2
    )  # replace the tensor, as `.to(dtype)` does
    assert torch.allclose(
        decoder(draw_token_ids(), causal=True), compute_plain_states(model, draw_token_ids()), atol=1e-4
    )

    class Adapted(torch.nn.Linear):
        """A layer of another class, as an adapter is."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) * 3

    model.layers[2].self_attn.v_proj = Adapted(48, 16)
    assert torch.allclose(
        decoder(draw_token_ids(), causal=True), compute_plain_states(model, draw_token_ids()), atol=1e-4
    )
