"""Packed batches give the states of each text alone, for every supported family; the kernel is a stand-in here."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig

from retbench.cards import catalog
from retbench.encoders.cross_encoder import load_cross_encoder
from retbench.engines import backbone as backbones
from retbench.engines import model_loader, varlen, vision_model
from retbench.engines.backbone import Backbone
from retbench.engines.generator import TransformersGenerator
from retbench.engines.image_processing import PixelLimits
from retbench.engines.vision_model import load_vision_model
from retbench.training import lora
from tests.test_packed_decoder import LENGTHS, build_model, compute_plain_states, draw_token_ids

# (model type, what is special)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, one key for all": ("llama", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, a wide window": ("mistral", {"sliding_window": 300}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma3's text part": ("gemma3_text", {"sliding_window": 300}),
    "phi3": ("phi3", {"sliding_window": None, "pad_token_id": 1}),
    "olmo2": ("olmo2", {}),
    "pythia": ("gpt_neox", {"head_dim": None}),
    "bert": ("bert", {"head_dim": None}),
    "roberta": ("roberta", {"head_dim": None, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {"head_dim": None, "pad_token_id": 1}),
    "camembert": ("camembert", {"head_dim": None, "pad_token_id": 1}),
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert")
# computed in padded rows: (model type, config)
PADDED_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "angles that follow the length": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "capped scores": ("gemma2", {}),
    "attention sinks": ("gpt_oss", {}),
    "a bias for each distance": ("mpnet", {"head_dim": None}),
}  # fmt: skip


def attend_one_by_one(query: Tensor, key: Tensor, value: Tensor, batch: varlen.PackedBatch, scale: float) -> Tensor:
    actual = []
    for start, end in pairwise(batch.offsets.tolist()):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        actual.append(scaled_dot_product_attention(q, k, v, is_causal=batch.causal, scale=scale, enable_gqa=True))
    return torch.cat([part[0].transpose(0, 1) for part in actual])


@pytest.fixture(autouse=True)
def attention_without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "find_kernel", lambda *_: attend_one_by_one)
    monkeypatch.setattr(backbones, "find_packed_pass", lambda _: None)  # as on a GPU
    monkeypatch.setattr(Backbone, "_compute_padded_states", None)


def build_backbone(family: str, config: dict[str, Any]) -> Backbone:
    model, nothing = build_model(family, **config), Any
    causal = family not in ENCODERS
    return Backbone(model, nothing, causal, "float32", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "config"), FAMILIES.values(), ids=FAMILIES)
def test_packed_states_equal_those_of_each_text_alone(family: str, config: dict[str, Any]) -> None:
    loaded = build_backbone(family, config)
    with torch.inference_mode():
        expected = torch.cat(
            [loaded.model(torch.from_numpy(ids.astype(np.int64))[None])[0][0] for ids in draw_token_ids()]
        )
    actual = loaded.compute_states(draw_token_ids())
    assert loaded.kernel == "varlen"
    assert actual.offsets.diff().tolist() == list(LENGTHS)
    assert float((actual.flat - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert loaded.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_an_earlier_layer_equals_that_of_transformers(layer: int) -> None:
    loaded = build_backbone("qwen2", {}).with_method("own", layer)
    expected = compute_plain_states(loaded.model, draw_token_ids(), layer)
    assert float((loaded.compute_states(draw_token_ids()).flat - expected).abs().max()) < 1e-5 * float(
        expected.abs().max()
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_bidirectional_attention_equals_transformers(family: str) -> None:
    loaded = build_backbone(family, {}).with_method("bidirectional", None)
    expected = compute_plain_states(loaded.model, draw_token_ids(), is_causal=False, attention_mask=None)
    assert float((loaded.compute_states(draw_token_ids()).flat - expected).abs().max()) < 1e-5 * float(
        expected.abs().max()
    )


@pytest.mark.parametrize(("family", "config"), PADDED_FAMILIES.values(), ids=PADDED_FAMILIES)
def test_unsupported_models_are_padded(family: str, config: dict[str, Any]) -> None:
    assert varlen.find_model_kernel(build_model(family, **config)) is None


def test_texts_longer_than_the_attention_window_are_padded() -> None:
    windowed = build_model("mistral", sliding_window=64)
    assert varlen.fits_attention_window(windowed, draw_token_ids((64, 3)))
    assert not varlen.fits_attention_window(windowed, draw_token_ids((65, 3)))
    loaded_model = build_model("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1)
    assert varlen.fits_attention_window(loaded_model, draw_token_ids((64,)))
    assert not varlen.fits_attention_window(loaded_model, draw_token_ids((65,)))
    assert varlen.fits_attention_window(build_model("qwen2", sliding_window=64), draw_token_ids((65,)))


def test_a_layer_without_packed_attention_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = build_backbone("llama", {})
    monkeypatch.setattr(loaded.model.config, "num_hidden_layers", 4)
    with pytest.raises(RuntimeError, match="3 of 4 layers"):
        varlen.run_packed(loaded.model, draw_token_ids(), causal=True)


def test_a_cpu_and_float32_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for device, dtype, width in (("cpu", torch.bfloat16, 64), ("cuda", torch.float32, 64), ("cuda", torch.half, 20)):
        assert varlen.find_kernel(torch.device(device), dtype, width) is None


def test_a_gpu_loads_the_weights_directly_from_the_file() -> None:
    gpu = torch.device("cuda")
    assert model_loader.get_device_map_options(torch.device("cpu")) == {}
    without_accelerate: dict[str, Any] = {}
    assert model_loader.get_device_map_options(gpu) in ({"device_map": {"": gpu}}, without_accelerate)


def test_every_loader_lets_transformers_load_into_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader without this option would read all weights into host memory first, for each worker."""
    recipe, cpu = catalog.find_recipe("quick"), torch.device("cpu")
    monkeypatch.setattr(model_loader, "get_device_map_options", lambda _: {"device_map": "the GPU"})
    monkeypatch.setattr(lora, "get_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(model_loader, "load_config", lambda *_: PretrainedConfig())
    monkeypatch.setattr(model_loader, "_map_text_names", lambda *_: {})
    places: list[Any] = []

    def record_options(*arguments: Any) -> None:
        places.append(arguments[4].get("device_map"))
        raise LookupError

    monkeypatch.setattr(model_loader, "_load", record_options)
    generator = TransformersGenerator("m", tmp_path, "w", "float32", 10, device=cpu)
    loaders: list[Callable[[], object]] = [
        lambda: backbones.load_backbone(tmp_path, "float32", cpu),
        lambda: backbones.load_masked_backbone(tmp_path, "float32", cpu),
        lambda: load_vision_model(tmp_path, "float32", cpu, PixelLimits()),
        lambda: load_cross_encoder(tmp_path, None, "float32", cpu),  # type: ignore[arg-type]
        lambda: generator.causal_model,
        lambda: lora.load_model(tmp_path, recipe),
        lambda: lora.load_model(tmp_path, recipe, head=True),
        lambda: lora.load_model(tmp_path, replace(recipe, sharding="fsdp")),
    ]
    monkeypatch.setattr(vision_model, "load_image_processor", lambda *_: None)
    for load in loaders:
        with pytest.raises(LookupError):
            load()
    assert places == ["the GPU"] * 7 + [None]
