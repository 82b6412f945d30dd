"""RoPE scaling: the setting, its effect on the model, and its place in the record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import retbench
from retbench.cards import rope_scaling
from retbench.engines import backbone, rotary_positions
from retbench.engines.backbone import Backbone
from retbench.errors import UsageError
from tests import small_collection, tiny_models

CPU = torch.device("cpu")
WINDOW = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=WINDOW)


def draw_token_ids(*lengths: int) -> list[np.ndarray]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, 90, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize(
    ("spelling", "canonical"), [("linear:2", "linear:2"), ("yarn:4.0", "yarn:4"), ("dynamic", "dynamic:1")]
)
def test_equal_settings_have_one_spelling(spelling: str, canonical: str) -> None:
    assert rope_scaling.parse_rope_scaling(spelling).setting == canonical


@pytest.mark.parametrize(
    "spelling", ["linear", "linear:1", "yarn:x", "yarn:-2", "linear:inf", "dynamic:0.5", "lineal:2", ""]
)
def test_a_factor_without_effect_is_refused(spelling: str) -> None:
    with pytest.raises(UsageError, match="rope="):
        rope_scaling.parse_rope_scaling(spelling)


def test_the_positions_of_a_loaded_model_are_scaled(folder: Path) -> None:
    unscaled, scaled = (
        backbone.load_backbone(folder, "float32", CPU, spelling).model for spelling in (None, "linear:2")
    )
    assert torch.allclose(scaled.rotary_emb.inv_freq, unscaled.rotary_emb.inv_freq / 2)
    stretched = backbone.load_backbone(folder, "float32", CPU, "yarn:4").model
    lowest, highest = stretched.rotary_emb.inv_freq[-1], stretched.rotary_emb.inv_freq[0]
    assert torch.allclose(lowest, unscaled.rotary_emb.inv_freq[-1] / 4)
    assert torch.allclose(highest, unscaled.rotary_emb.inv_freq[0])
    assert stretched.config.rope_parameters["original_max_position_embeddings"] == WINDOW


def test_dynamic_scaling_changes_only_texts_beyond_the_window(folder: Path) -> None:
    unscaled, dynamic = (backbone.load_backbone(folder, "float32", CPU, spelling) for spelling in (None, "dynamic"))
    for length, same in ((WINDOW, True), (WINDOW + 30, False)):
        unscaled_states, dynamic_states = (
            loaded.compute_states(draw_token_ids(length)).flat for loaded in (unscaled, dynamic)
        )
        assert torch.allclose(unscaled_states, dynamic_states, atol=1e-5) is same


def build_other_family(family: str) -> Backbone:
    """A model that transformers computes, with a rope that follows the length."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": WINDOW}
    config = AutoConfig.for_model(family, **sizes, **heads, pad_token_id=0)
    rotary_positions.apply_rope_scaling(config, "dynamic:2")
    return Backbone(AutoModel.from_config(config).eval(), None, True, "float32", CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_dynamic_scaling_uses_the_length_of_each_text(family: str) -> None:
    model, texts = build_other_family(family), draw_token_ids(90, 70, 70, 30, 3)
    assert model.kernel == ("sdpa by length" if family == "qwen2" else "sdpa")
    together = model.compute_states(texts)
    for number in np.random.default_rng(0).permutation(len(texts)):
        alone = model.compute_states([texts[number]]).flat
        states = together.flat[together.offsets[number] : together.offsets[number + 1]]
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-4)


def test_an_unsupported_rope_is_refused(folder: Path) -> None:
    for family in ("bert", "gemma3_text"):
        with pytest.raises(UsageError, match="rotary positions"):
            rotary_positions.apply_rope_scaling(AutoConfig.for_model(family), "linear:2")
    config = AutoConfig.from_pretrained(folder)
    rotary_positions.apply_rope_scaling(config, "linear:2")
    with pytest.raises(UsageError, match="scaled already"):
        rotary_positions.apply_rope_scaling(config, "linear:2")


def test_the_setting_is_in_the_record_and_in_the_settings_id(folder: Path, tmp_path: Path) -> None:
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    results = {}
    for spelling in (None, "linear:4", "linear:4.0", "yarn:4"):
        overrides = {"rope": spelling} if spelling else {}
        (cell,) = retbench.evaluate(
            [str(folder)], tasks=[pantry], methods=["mean"], out=tmp_path / "r", overrides=overrides
        )
        assert cell.status == "done", cell.error
        results[spelling] = cell
    assert results["linear:4.0"].cached
    assert len({cell.settings_id for cell in results.values()}) == 3
    records = [json.loads((Path(str(cell.record)) / "record.json").read_text()) for cell in results.values()]
    assert [unscaled_states["settings"]["encoder"].get("rope") for unscaled_states in records] == [
        None,
        "linear:4",
        "linear:4",
        "yarn:4",
    ]
    assert results["linear:4"].scores != results[None].scores or results["yarn:4"].scores != results[None].scores


def test_other_engines_are_refused(folder: Path, tmp_path: Path) -> None:
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    (cell,) = retbench.evaluate([str(folder)], tasks=[pantry], methods=["mean"], out=tmp_path / "r",
                                overrides={"rope": "linear:2"}, engine="sentence-transformers")  # fmt: skip
    assert (cell.status, "does not support --set rope" in str(cell.error)) == ("skipped", True)
