"""Model folders that attack: files of a wrong kind, an index or an adapter that leads elsewhere, lying headers."""

import json
import logging
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retbench.cards import catalog, published_cross_encoder, published_kinds
from retbench.engines import (
    adapters,
    backbone,
    chat_template,
    fingerprints,
    model_folders,
    model_loader,
    text_config,
    weights,
)
from retbench.engines.generator import TransformersGenerator
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, RetbenchError
from tests.test_model_loader import train_adapter
from tests.test_weights import build_card, write_gguf


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def split_weights(folder: Path, **names: str) -> Path:
    """Split the weights into two files with an index; `names` replaces the names of files in the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {"a.safetensors": list(tensors)[:half], "b.safetensors": list(tensors)[half:]}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name, {"format": "pt"})
    index = {key: names.get(name[0], name) for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def find_weights(folder: Path) -> Any:
    return weights.find_local_weights(catalog.find_model_card(str(folder)))


def load_model(folder: Path) -> torch.nn.Module:
    local = find_weights(folder)
    return model_loader.load_text_model(local.folder, "float32")


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# The index


def test_an_index_of_two_files_is_read(folder: Path, model: Path) -> None:
    expected, actual = load_model(model).state_dict(), load_model(split_weights(folder)).state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "/b.safetensors", "sub/b.safetensors", "b.bin", "../b.bin", "b.pt"]
)
def test_an_index_cannot_name_pickles_or_files_elsewhere(name: str, folder: Path) -> None:
    split_weights(folder, b=name)
    target = folder / name.lstrip("/")
    target.parent.mkdir(exist_ok=True)
    target.write_bytes((folder / "b.safetensors").read_bytes())
    with pytest.raises(DataError, match="which is no safetensors file in its folder"):
        find_weights(folder)
    with pytest.raises(DataError, match="which is no safetensors file in its folder"):
        model_loader.load_text_model(folder, "float32")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "not json", "[" * 9000]
)
def test_a_damaged_index_is_an_error(content: str, folder: Path) -> None:
    (split_weights(folder) / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataError):
        find_weights(folder)


def test_a_weight_in_two_files_is_an_error(folder: Path) -> None:
    split_weights(folder)
    tensors = {**load_file(folder / "a.safetensors"), **load_file(folder / "b.safetensors")}
    save_file(tensors, folder / "b.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"a\.safetensors and .*b\.safetensors both have"):
        load_model(folder)


# Adapters


def test_a_folder_that_is_model_and_adapter_is_refused(folder: Path) -> None:
    """transformers would load the adapter, over the weights that its config names, which may be elsewhere."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc", "lora_alpha": 8}')
    with pytest.raises(DataError, match="it could be a model or an adapter"):
        find_weights(folder)


# Kinds of files


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "extra.json", "model.safetensors", "1_Pooling/config.json"]
)
def test_a_pipe_in_place_of_a_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(DataError):
        find_weights(folder)


def test_a_link_to_a_device_is_refused(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or a device"):
        find_weights(folder)


def test_a_huge_sparse_text_is_refused(folder: Path) -> None:
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(model_folders.MAX_TEXT_BYTES + 1)
    with pytest.raises(DataError, match="more than a config or a tokenizer"):
        find_weights(folder)


def test_links_to_regular_files_are_followed(folder: Path, tmp_path: Path) -> None:
    """The hub's own cache holds links only."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert find_weights(linked).fingerprint == find_weights(folder).fingerprint


# Fingerprints


@pytest.mark.parametrize("name", ["qwen.tiktoken", "source.spm", "bpe.codes", "dict.txt", "tekken.json"])
def test_every_vocabulary_is_in_the_fingerprint(name: str, folder: Path) -> None:
    before = fingerprints.compute_folder_fingerprint(folder)
    (folder / name).write_text("{}")
    assert fingerprints.compute_folder_fingerprint(folder) != before


def test_additional_chat_templates_are_in_the_fingerprint(folder: Path) -> None:
    before = fingerprints.compute_folder_fingerprint(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    assert fingerprints.compute_folder_fingerprint(folder) != before


def test_the_fingerprint_of_a_plain_folder_stays(folder: Path) -> None:
    """It is part of every embedding key and settings-id. Files that no vector depends on do not change it."""
    for name in ("generation_config.json", "README.md", "data_config.json", "1_Pooling/config.json"):
        before = fingerprints.compute_folder_fingerprint(folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        assert fingerprints.compute_folder_fingerprint(folder) == before


@pytest.mark.parametrize("path", ["../outside", "/etc"])
def test_modules_are_inside_of_the_folder(path: str, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": path, "type": "x"}]))
    with pytest.raises(DataError, match="names a module outside its folder"):
        fingerprints.compute_modules_fingerprint(folder)


# Generation


def build_generator(folder: Path) -> TransformersGenerator:
    return TransformersGenerator("tiny", folder, "w", "float32", 2048, torch.device("cpu"))


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": list(range(1, 200))}, {"min_new_tokens": 6}, {"bad_words_ids": [[5], [6], [7]]},
        {"no_repeat_ngram_size": 1}, {"forced_eos_token_id": 3}, {"num_beams": 3}, {"max_length": 3},
        {"repetition_penalty": 9.0}, {"do_sample": True, "temperature": 50.0}, {"begin_suppress_tokens": [1, 2, 3]},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_generation_settings_of_the_folder_change_no_answer(settings: dict[str, Any], folder: Path) -> None:
    expected = build_generator(folder)
    answer = expected.generate("order the passages", 5)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    actual = build_generator(folder)
    assert actual.generate("order the passages", 5) == answer
    assert actual.describe() == expected.describe()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_language_model_that_is_no_number_gives_no_answer(value: float, folder: Path) -> None:
    """The most probable token would be the first one, or the first infinite one: an answer like any other."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="tiny gives logits that are NaN or infinite"):
        build_generator(folder).generate("order the passages", 5)


def test_other_stop_tokens_for_generation_are_in_the_settings(folder: Path) -> None:
    plain = build_generator(folder).describe()
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    for stop_tokens, added in ((eos, {}), ([eos, 7], {"stop_tokens": [eos, 7]})):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_tokens}))
        assert build_generator(folder).describe() == {**plain, **added}


# Lying headers


def read_parts(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(file: Path, header: Any, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def lie_overlap(header: dict[str, Any]) -> None:
    names = [name for name in header if name != "__metadata__"]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def lie_about_the_dtype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F16"


def lie_about_an_unknown_dtype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F7"


def lie_about_the_shape(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [1 << 40, 1 << 40]


def lie_negative(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["data_offsets"] = [-4, 0]


def lie_about_the_type(header: dict[str, Any]) -> None:
    header["model.norm.weight"] = [1, 2]


def lie_by_huge_offsets(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["data_offsets"] = [0, 1 << 70]


LIES = (lie_overlap, lie_about_the_dtype, lie_about_an_unknown_dtype, lie_about_the_shape, lie_negative,
        lie_about_the_type, lie_by_huge_offsets)  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_an_error(lie: Any, folder: Path) -> None:
    file = folder / "model.safetensors"
    header, data = read_parts(file)
    lie(header)
    write_parts(file, header, data)
    with pytest.raises(RetbenchError):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 40, (1 << 64) - 1])
def test_a_lying_header_length_is_an_error(length: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(DataError, match="damaged or truncated"):
        find_weights(folder)


# What a folder has computed: templates and patterns


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% for i in range(10**12) %}{% endfor %}", "the chat template of the model fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the chat template of the model fails"),
        ("{{ raise_exception('no system turn') }}", "fails: no system turn"),
        ("{% if %}", "the chat template of the model fails"),
    ],
    ids=["loops", "huge range", "escape", "raises", "syntax"],
)
def test_a_chat_template_is_bounded(template: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=message):
        chat_template.render_chat(tokenizer, [{"role": "user", "content": "x"}])


def test_the_pattern_of_an_adapter_is_bounded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_SECONDS", 0.2)
    train_adapter(folder, tmp_path / "adapter", str(folder))
    change_json(tmp_path / "adapter" / "adapter_config.json", target_modules="(([a-z0-9._]+)+)+!")
    with pytest.raises(DataError, match=r"a pattern of layers in .* does not end within"):
        adapters.merge_adapter(folder, tmp_path / "adapter", tmp_path / "merged")


# GGUF


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 1_000_000),
        ("hidden_size", 1 << 30),
        ("intermediate_size", 1 << 31),
        ("num_attention_heads", 1 << 20),
    ],
)
def test_a_gguf_file_with_absurd_counts_is_refused_at_once(name: str, value: int, folder: Path, tmp_path: Path) -> None:
    change_json(folder / "config.json", **{name: value})
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(DataError, match="which its tensors contradict"):
        weights.obtain_weights(build_card(), path=str(file))


def test_a_gguf_file_with_a_token_that_is_no_integer_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    def add_fraction(writer: Any, value: int) -> None:
        writer.add_float32("tokenizer.ggml.padding_token_id", value)

    monkeypatch.setattr(gguf.GGUFWriter, "add_pad_token_id", add_fraction)
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(DataError, match=r"transformers cannot load .*tiny\.gguf"):
        weights.obtain_weights(build_card(), path=str(file))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 10**9), ("vocab_size", 10**9), ("max_position_embeddings", 10**12)],
)
def test_counts_that_the_weights_contradict_are_refused_before_a_model_is_built(
    name: str, value: int, folder: Path
) -> None:
    change_config(folder, **{name: value})
    with pytest.raises(DataError, match=rf"config\.json has {name} 1e\+\d+, which its weights contradict"):
        model_loader.load_text_model(folder, "float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such-model"},
        {"model_type": None},
        {"model_type": [], "auto_map": None},
        {"hidden_act": "no-such-function"},
        {"vocab_size": "x"},
    ],
)
def test_what_transformers_cannot_load_ends_in_two_lines(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **changes)
    assert text_config.is_causal(folder)
    with pytest.raises(DataError, match="transformers cannot load"):
        model_loader.load_text_model(folder, "float32")


@pytest.mark.parametrize("architectures", [1, "HF_ColBERT", {"a": 1}, [None, [], 3]])
def test_ill_typed_architectures_name_no_kind(architectures: Any, folder: Path) -> None:
    change_config(folder, architectures=architectures)
    assert published_kinds.find_folder_kind(folder) == "dense"
    assert not published_cross_encoder.is_language_model(folder)


@pytest.mark.parametrize("entry", [{"shape": {}}, {"shape": [True, 2]}, {"data_offsets": [0, "9"]}, {"shape": 3}])
def test_an_ill_typed_header_is_an_error(entry: dict[str, Any], folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"] |= entry
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(DataError, match="is damaged"):
        model_folders.check_folder(folder)


def test_a_token_without_an_embedding_is_an_error(folder: Path) -> None:
    """On a GPU it would end the process."""
    loaded = backbone.load_backbone(folder, "float32", torch.device("cpu"))
    with pytest.raises(DataError, match="the tokenizer gives token 9999, but the model has 480 embeddings"):
        loaded.compute_states([np.array([1, 9999]), np.array([], dtype=np.int64)])


def test_a_pickle_beside_the_weights_is_not_opened(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with caplog.at_level(logging.INFO, "retbench"):
        model_loader.load_text_model(folder, "float32")
    assert f"{folder / 'pytorch_model.bin'} is not opened" in caplog.text
