"""LoRA adapters of ColQwen and ColPali in the layout of the hub: merged with tower and projection, and none of it lost.

Each is compared with a plain computation: W + B A alpha / r for every adapted layer, by name, then transformers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retbench.cards import catalog
from retbench.cards.published_method import describe_published_card
from retbench.engines import adapters, weights
from retbench.errors import DataError
from retbench.pipelines import fetch
from tests import image_collection, tiny_models, tiny_vision_models
from tests.test_page_retrievers import encode
from tests.toy_hub import ToyHub, toy_hub  # noqa: F401  # a fixture

RANK, ALPHA = 4, 8
ARCHITECTURES = ("ColQwen2", "ColQwen2_5", "ColPali", "ColQwen2ForRetrieval")
LINEAR = "(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj)"
# what the authors' training configs adapt, in the versions of the published weights
TARGETS = {
    "ColQwen2": f"(.*(model).*{LINEAR}.*$|.*(custom_text_proj).*$)",
    "ColQwen2_5": f"(.*(model).*{LINEAR}.*$|.*(custom_text_proj).*$)",
    "ColPali": f"(.*(language_model).*{LINEAR}.*$|.*(custom_text_proj).*$)",
    "ColQwen2ForRetrieval": r"(.*(language_model).*(q_proj|v_proj).*$|.*(embedding_proj_layer).*$)",
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {name: tiny_vision_models.build_page_retriever(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def collection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_collection.write_folder(tmp_path_factory.mktemp("images") / "discs")


def list_layers(parent: Path, architecture: str) -> list[str]:
    """The adapted layers by their names in the published weights, which the parents' files have too."""
    import re

    stored = [name.removesuffix(".weight") for name in load_file(parent / "model.safetensors") if ".weight" in name]
    return [name for name in stored if re.fullmatch(TARGETS[architecture], name) and "norm" not in name]


def write_adapter(folder: Path, parent: Path, architecture: str, layers: list[str], **config: Any) -> Path:
    """Write an adapter as peft does: a config, and two matrices for each layer."""
    folder.mkdir(parents=True)
    stored, generator = load_file(parent / "model.safetensors"), torch.Generator().manual_seed(1)
    tensors: Tensors = {}
    for layer in layers:
        rows, columns = stored[f"{layer}.weight"].shape
        name = f"base_model.model.{layer}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.2
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": str(parent), "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.1, "init_lora_weights": "gaussian", "bias": "none",
        "target_modules": TARGETS[architecture], "inference_mode": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return folder


def build_adapter(tmp_path: Path, parent: Path, architecture: str, **config: Any) -> Path:
    return write_adapter(tmp_path / "adapter", parent, architecture, list_layers(parent, architecture), **config)


def edit_tensors(adapter: Path, edit: Callable[[Tensors], Any]) -> Path:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    return adapter


def merge_plainly(parent: Path, adapter: Path, folder: Path) -> Path:
    """The parent's folder with the sums of its weights and the products of the adapter's matrices."""
    import shutil

    shutil.copytree(parent, folder)
    merged, tensors = load_file(parent / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name, up in tensors.items():
        if ".lora_B." in name:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            merged[f"{layer}.weight"] = (
                merged[f"{layer}.weight"] + ALPHA / RANK * up @ tensors[name.replace("_B.", "_A.")]
            )
    save_file(merged, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pages_and_questions_of_a_merged_adapter_equal_plain_sums(
    architecture: str, parents: dict[str, Path], collection_folder: Path, tmp_path: Path
) -> None:
    parent = parents[architecture]
    adapter = build_adapter(tmp_path, parent, architecture)
    plain = merge_plainly(parent, adapter, tmp_path / "plain")
    for role in ("document", "query"):
        pairs = zip(encode(adapter, collection_folder, role), encode(plain, collection_folder, role), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    bare = encode(parent, collection_folder, "query")[0]
    assert np.abs(encode(adapter, collection_folder, "query")[0] - bare).max() > 1e-2  # else the test could not fail


def merge(parent: Path, adapter: Path, folder: Path) -> Tensors:
    adapters.merge_adapter(parent, adapter, folder)
    return load_file(folder / "model.safetensors")


def test_a_patterns_rank_and_alpha_are_those_of_the_stored_names(parents: dict[str, Path], tmp_path: Path) -> None:
    parent, name = parents["ColQwen2_5"], "model.layers.0.self_attn.q_proj"
    adapter = build_adapter(tmp_path, parent, "ColQwen2_5", rank_pattern={name: 2}, alpha_pattern={name: 6})

    def shorten(tensors: Tensors) -> None:
        for part, cut in (("A", np.s_[:2]), ("B", np.s_[:, :2])):
            key = f"base_model.model.{name}.lora_{part}.weight"
            tensors[key] = tensors[key][cut].contiguous()

    edit_tensors(adapter, shorten)
    tensors, before = load_file(adapter / "adapter_model.safetensors"), load_file(parent / "model.safetensors")
    down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    found = merge(parent, adapter, tmp_path / "merged")[f"language_{name}.weight"]
    torch.testing.assert_close(found, before[f"{name}.weight"] + 6 / 2 * up @ down)


def test_a_tower_is_adapted_where_the_adapter_has_tensors_of_it(parents: dict[str, Path], tmp_path: Path) -> None:
    parent, layer = parents["ColQwen2_5"], "visual.blocks.0.mlp.gate_proj"
    targets = TARGETS["ColQwen2_5"].replace("(model)", "(model|visual)")
    layers = [
        *list_layers(parent, "ColQwen2_5"),
        *(f"visual.blocks.{block}.mlp.{part}_proj" for block in (0, 1) for part in ("gate", "up", "down")),
    ]
    adapter = write_adapter(tmp_path / "adapter", parent, "ColQwen2_5", layers, target_modules=targets)
    tensors, before = load_file(adapter / "adapter_model.safetensors"), load_file(parent / "model.safetensors")
    down, up = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    found = merge(parent, adapter, tmp_path / "merged")[f"{layer}.weight"]
    torch.testing.assert_close(found, before[f"{layer}.weight"] + ALPHA / RANK * up @ down)


def test_a_projection_in_the_adapter_makes_a_page_retriever_of_a_plain_model(
    parents: dict[str, Path], collection_folder: Path, tmp_path: Path
) -> None:
    """As some repositories have it: the projection as a whole, over a Qwen2.5-VL that has none."""
    whole = parents["ColQwen2_5"]
    plain_model = tiny_vision_models.build_vision_model(tmp_path / "qwen2_5_vl", "qwen2_5_vl")
    layers = [layer for layer in list_layers(whole, "ColQwen2_5") if layer != "custom_text_proj"]
    adapter = write_adapter(
        tmp_path / "adapter", whole, "ColQwen2_5", layers, base_model_name_or_path=str(plain_model),
        modules_to_save=["custom_text_proj"], target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )  # fmt: skip
    edit_tensors(adapter, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".mlp." in name])
    with pytest.raises(DataError, match=r"has no custom_text_proj\.weight, and its adapter"):
        merge(plain_model, edit_tensors(adapter, lambda t: t.update(PROJECTION_LORA)), tmp_path / "without")
    projection = {
        f"custom_text_proj.{part}": load_file(whole / "model.safetensors")[f"custom_text_proj.{part}"]
        for part in ("weight", "bias")
    }

    def replace_projection(tensors: Tensors) -> None:
        for name in PROJECTION_LORA:
            del tensors[name]
        tensors.update({f"base_model.model.{name}": value for name, value in projection.items()})

    edit_tensors(adapter, replace_projection)
    merged = merge(plain_model, adapter, tmp_path / "merged")
    assert all(torch.equal(merged[name], value) for name, value in projection.items())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == ["ColQwen2_5"]
    assert encode(adapter, collection_folder, "document")[0].shape[1] == len(projection["custom_text_proj.bias"])


PROJECTION_LORA = {
    "base_model.model.custom_text_proj.lora_A.weight": torch.ones(RANK, 64),
    "base_model.model.custom_text_proj.lora_B.weight": torch.ones(16, RANK),
}
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
DAMAGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "half a pair": (
        lambda tensors: tensors.pop(f"{QUERY}.lora_B.weight"), r"has no .*layers\.0\.self_attn\.q_proj\.lora_B",
    ),
    "a layer": (
        lambda tensors: [tensors.pop(f"{QUERY}.lora_{part}.weight") for part in "AB"],
        r"has no tensors of language_model\.layers\.0\.self_attn\.q_proj",
    ),
    "an unknown layer": (
        lambda tensors: tensors.update({f"{QUERY.replace('.0.', '.9.')}.lora_A.weight": torch.ones(RANK, 64)}),
        r"changes model\.layers\.9\.self_attn\.q_proj, which its parent does not have",
    ),
    "an unknown weight": (
        lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(4, 64)}),
        r"has base_model\.model\.score\.weight, for which its parent has no weight",
    ),
    "another width": (
        lambda tensors: tensors.update({f"{QUERY}.lora_A.weight": torch.ones(RANK, 32)}), "does not fit its parent",
    ),
    "another rank": (
        lambda tensors: tensors.update(
            {f"{QUERY}.lora_A.weight": torch.ones(2, 64), f"{QUERY}.lora_B.weight": torch.ones(64, 2)}
        ),
        "does not fit its parent",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tensor_that_is_missing_or_unused_is_named(damage: str, parents: dict[str, Path], tmp_path: Path) -> None:
    edit, message = DAMAGES[damage]
    adapter = edit_tensors(build_adapter(tmp_path, parents["ColQwen2_5"], "ColQwen2_5"), edit)
    with pytest.raises(DataError, match=message):
        merge(parents["ColQwen2_5"], adapter, tmp_path / "merged")


def test_the_parent_of_another_family_is_refused(parents: dict[str, Path], tmp_path: Path) -> None:
    adapter = build_adapter(tmp_path, parents["ColPali"], "ColPali")
    text_model = tiny_models.build_model(tmp_path / "text")
    with pytest.raises(DataError, match="a model of the type qwen2, and its adapter one of a page retriever"):
        merge(text_model, adapter, tmp_path / "again")


def test_another_parent_is_another_fingerprint(parents: dict[str, Path], tmp_path: Path) -> None:
    from retbench.cards.model import ModelCard, WeightsSource

    adapter = build_adapter(tmp_path, parents["ColQwen2_5"], "ColQwen2_5")
    card = ModelCard("pages", weights=WeightsSource("path", path=str(adapter)))
    first = weights.obtain_weights(card)
    assert weights.find_local_weights(card) == first
    changed = tiny_vision_models.build_page_retriever(tmp_path / "changed", "ColQwen2_5")
    stored = load_file(changed / "model.safetensors")
    stored["visual.blocks.0.mlp.gate_proj.bias"] += 1
    save_file(stored, changed / "model.safetensors", {"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(changed)}))
    assert weights.find_local_weights(card) is None
    assert weights.obtain_weights(card).fingerprint != first.fingerprint


def test_a_folder_of_an_adapter_names_its_parent_and_the_method_of_the_merged_model(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    adapter = build_adapter(tmp_path, parents["ColPali"], "ColPali")
    before = weights.find_described_card(str(adapter))
    assert (before.parent, before.method) == ("ColPali", None)
    weights.obtain_weights(before)
    method = weights.find_described_card(str(adapter)).method
    assert method is not None
    assert method.default == "as-published"


def test_fetch_merges_a_published_adapter_with_tower_and_projection(toy_hub: ToyHub, tmp_path: Path) -> None:  # noqa: F811
    card = catalog.find_model_card("colqwen2.5-v0.2")
    assert card.weights is not None
    models = toy_hub.root / "models"
    parent = tiny_vision_models.build_page_retriever(models / "vidore" / "colqwen2.5-base", "ColQwen2_5")
    layers = list_layers(parent, "ColQwen2_5")
    adapter = write_adapter(models / str(card.weights.repo), parent, "ColQwen2_5", layers)
    (row,) = fetch.fetch_by_name(card.name, lambda _: None)
    assert "error" not in row, row
    local = weights.obtain_weights(card)
    found, expected = load_file(local.folder / "model.safetensors"), merge(parent, adapter, tmp_path / "merged")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    described = describe_published_card(card, local.published_folder)
    assert described.method is not None
    assert described.method.default == "as-published"
