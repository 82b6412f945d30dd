"""Weights are loaded correctly from every layout of a file, or refused.

Each architecture of `model_cards/` is written as transformers and as the hub's repositories write it. The loaded model
is compared with the transformers model that holds the same weights and was never saved.
"""

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import retbench
from retbench.cards import catalog
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.recipe import LoraSettings, OptimizerSettings
from retbench.engines import adapters, lm_head, model_loader, weights
from retbench.engines.backbone import load_backbone
from retbench.engines.sentence_transformers_engine import load_sentence_transformers_model
from retbench.errors import DataError
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.training import lora
from retbench.training.training_data import TrainingRequest
from tests import small_collection, tiny_models, tiny_vision_models
from tests.test_train_loop import RECIPE, write_jsonl

CPU = torch.device("cpu")
ROWS = [np.arange(3, 3 + length) for length in (9, 4, 1, 9)]
LORA = replace(RECIPE, lora=LoraSettings(r=2, lora_alpha=6))
SIZES: dict[str, Any] = {
    "vocab_size": tiny_models.VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
DECODER = {"num_key_value_heads": 1, "head_dim": 16}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 28, "patch_size": 14},
    "qwen2_5_vl": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32,
                   "fullatt_block_indexes": [0]},
}  # fmt: skip
TEXT_KINDS: dict[str, dict[str, Any]] = {
    "bert": {}, "llama": DECODER, "mistral": {**DECODER, "sliding_window": 6}, "qwen2": {"num_key_value_heads": 1},
    "qwen3": DECODER, "gemma2": {**DECODER, "sliding_window": 6}, "gemma3_text": {**DECODER, "sliding_window": 6},
    "phi3": {"num_key_value_heads": 1}, "gpt_neox": {}, "modernbert": {"local_attention": 4},
}  # fmt: skip
ENCODERS = ("bert", "modernbert")  # with a masked-language-model head
ARCHITECTURES = {  # by family of the cards; Gemma 3 has only a text part up to 1B
    "bge": ["bert"], "contriever": ["bert"], "e5": ["bert"], "minilm": ["bert"], "llama": ["llama"],
    "smollm2": ["llama"], "mistral": ["mistral"], "qwen2": ["qwen2"], "qwen2.5": ["qwen2", "qwen2_5_vl"],
    "qwen3": ["qwen3"], "gemma-2": ["gemma2"], "gemma-3": ["gemma3_text", "gemma3"], "phi": ["phi3"],
    "pythia": ["gpt_neox"], "splade": ["bert"], "colbert": ["bert", "modernbert"],
}  # fmt: skip
IMAGE_FAMILIES = {"clip": ["clip"], "siglip": ["siglip", "siglip2"], "qwen2-vl": ["qwen2_vl"], "qwen3-vl": ["qwen3_vl"]}
PAGE_FAMILIES = {"paligemma"}
Rename = Callable[[str], list[str]]  # a weight's name in the whole transformers model -> its names in the file


class Sample(NamedTuple):
    """A whole transformers model with random weights, and its text part."""

    whole: Any
    text: Any

    def compute_states(self, text: Any = None) -> torch.Tensor:
        """The states of all rows, each computed alone."""
        with torch.no_grad():
            return torch.cat([(text or self.text)(torch.from_numpy(row)[None]).last_hidden_state[0] for row in ROWS])


def build(kind: str, tied: bool = True) -> Sample:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
    )

    torch.manual_seed(5)
    if kind in VISION:
        sizes = {
            **SIZES,
            **DECODER,
            **({"sliding_window": 6} if kind == "gemma3" else MROPE),
            "tie_word_embeddings": tied,
        }
        parts = {"text_config": sizes, "vision_config": VISION[kind], "tie_word_embeddings": tied}
        extra = {"mm_tokens_per_image": 4} if kind == "gemma3" else {}
        whole: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **parts, **extra))
    else:
        config = AutoConfig.for_model(kind, **{**SIZES, **TEXT_KINDS[kind], "tie_word_embeddings": tied})
        factory: Any = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
        whole = factory.from_config(config)
    make_random(whole)
    whole.set_attn_implementation(
        "eager"
    )  # other kernels of transformers 5.16 leave out Gemma 2's attention logit softcapping
    return Sample(whole.eval(), getattr(whole.base_model, "language_model", whole.base_model))


def make_random(model: nn.Module) -> None:
    """Norms and biases get random values too, because their ones and zeros would hide a mistake."""
    for name, weight in model.named_parameters():
        around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        nn.init.normal_(weight, mean=around, std=0.1)


def write(sample: Sample, folder: Path, rename: Rename | None = None, **options: Any) -> Path:
    """Save the model as transformers does; `rename` gives the weights other names."""
    sample.whole.save_pretrained(folder, **options)
    if rename:
        (folder / "model.safetensors").unlink()
        state = {new: weight for name, weight in get_stored_state(sample.whole).items() for new in rename(name)}
        save_file({name: weight.clone() for name, weight in state.items()}, folder / "model.safetensors")
    tiny_models.build_tokenizer().save_pretrained(folder)
    return folder


def get_stored_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights as a file stores them: tied weights once."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    return {name: weight for name, weight in model.state_dict().items() if name not in tied}


def replace_prefix(**prefixes: str) -> Rename:
    """Replace the prefixes of names; `__` in a keyword stands for a dot."""

    def rename(name: str) -> list[str]:
        for old, new in prefixes.items():
            if name.startswith(f"{old.replace('__', '.')}."):
                return [new + name.removeprefix(f"{old.replace('__', '.')}.")]
        return [name]

    return rename


def use_bert_names_of_2018(name: str) -> list[str]:
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    extra = ["bert.embeddings.position_ids"] if name.endswith("position_embeddings.weight") else []
    return [old, *extra, *(["cls.seq_relationship.weight"] if extra else [])]


def add_buffers(name: str) -> list[str]:
    """Files of 2023 also have rotary frequencies and causal masks."""
    layer = name.rpartition(".input_layernorm.weight")[0]
    if not layer:
        return [name]
    if name.startswith("gpt_neox"):
        return [name, *(f"{layer}.attention.{part}" for part in ("bias", "masked_bias", "rotary_emb.inv_freq"))]
    return [name, f"{layer}.self_attn.rotary_emb.inv_freq"]


TEXT_LAYOUTS: dict[str, tuple[dict[str, Any], Rename | None]] = {
    "as saved": ({}, None),
    "in shards": ({"max_shard_size": "40KB"}, None),
    "with old buffers": ({}, add_buffers),
    "wrapped": ({}, lambda name: [f"encoder.{name}"]),  # saved by a trainer that does not unwrap its model
}
VISION_LAYOUTS: dict[str, tuple[dict[str, Any], Rename | None]] = {
    "as saved": ({}, None),
    "in shards": ({"max_shard_size": "40KB"}, None),
    "transformers 4.52": ({}, lambda name: [name]),
    "doubled by transformers 5.10": ({}, replace_prefix(model__language_model="model.language_model.model.")),
    "base model": ({}, replace_prefix(lm_head="lm_head.", model="")),
    "hub of Gemma": (
        {},
        replace_prefix(model__language_model="language_model.model.", lm_head="language_model.lm_head.", model=""),
    ),
    "hub of Qwen": ({}, replace_prefix(model__language_model="model.", model="")),
}
REFUSED = {("bert", "wrapped"), ("gpt_neox", "wrapped"), ("modernbert", "wrapped")}
CASES = [(kind, layout) for kind in TEXT_KINDS for layout in TEXT_LAYOUTS]
CASES += [("bert", "2018")] + [(kind, layout) for kind in VISION for layout in VISION_LAYOUTS]
CASES = [case for case in CASES if case not in REFUSED]


@functools.cache
def get_layout(kind: str, layout: str) -> tuple[dict[str, Any], Rename | None]:
    if layout == "2018":
        return {}, use_bert_names_of_2018
    return (VISION_LAYOUTS if kind in VISION else TEXT_LAYOUTS)[layout]


def compute_states(folder: Path) -> torch.Tensor:
    return load_backbone(folder, "float32", CPU).compute_states(ROWS).flat


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_every_family_has_an_architecture_here() -> None:
    """Those that read images are compared in test_vision_encoders.py and test_page_retrievers.py, T5 in
    test_t5_encoders.py."""
    families = {card.family for card in catalog.load_model_cards() if card.kind == "backbone"}
    assert families == {*ARCHITECTURES, *IMAGE_FAMILIES, *PAGE_FAMILIES, "t5"}
    image_kinds = {kind for kinds in IMAGE_FAMILIES.values() for kind in kinds}
    assert image_kinds <= {*tiny_vision_models.TOWERS, *tiny_vision_models.DECODERS}
    assert {kind for kinds in ARCHITECTURES.values() for kind in kinds} == {*TEXT_KINDS, *VISION}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_states_and_logits_are_those_of_the_same_weights_in_transformers(
    kind: str, layout: str, tied: bool, tmp_path: Path
) -> None:
    sample = build(kind, tied)
    options, rename = get_layout(kind, layout)
    folder = write(sample, tmp_path / "model", rename, **options)
    loaded = load_backbone(folder, "float32", CPU)
    states = loaded.compute_states(ROWS).flat
    assert_equal(states, sample.compute_states())
    assert not any("visi" in name or "visual" in name for name, _ in loaded.model.named_parameters())
    if kind not in ENCODERS:
        with torch.no_grad():
            logits = sample.whole(torch.from_numpy(ROWS[0])[None]).logits[0]
        assert_equal(lm_head.load_lm_head(folder, loaded).compute_logits(states[: len(ROWS[0])]), logits)
        with torch.no_grad():
            whole = model_loader.load_language_model(folder, "float32").eval()
            assert_equal(whole(torch.from_numpy(ROWS[0])[None]).logits[0], logits)


def test_the_flat_config_of_qwens_own_repositories_is_read(tmp_path: Path) -> None:
    sample = build("qwen2_5_vl")
    folder = write(sample, tmp_path / "model", get_layout("qwen2_5_vl", "hub of Qwen")[1])
    config = json.loads((folder / "config.json").read_text())
    text = {name: value for name, value in config.pop("text_config").items() if name != "model_type"}
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    assert_equal(compute_states(folder), sample.compute_states())
    model = lora.prepare_for_training(lora.load_model(folder, LORA), LORA)
    assert not any("visual" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", VISION)
def test_a_multimodal_model_is_finetuned_and_found_by_name(
    kind: str, tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    parent, sentences = write(build(kind), tmp_path / "parent"), tiny_models.SENTENCES
    rows = [{"query": sentences[n], "positives": [sentences[n + 1]]} for n in range(0, len(sentences), 2)]
    data = write_jsonl(tmp_path / "pairs.jsonl", *rows)
    for name, export in (("merged", "sentence-transformers"), ("adapter", None)):
        request = TrainingRequest(str(data), str(parent), name=name, out=tmp_path / name, export=export)
        optimizer = OptimizerSettings(learning_rate=1e-2, num_train_epochs=4)
        finetune_encoder(request, replace(RECIPE, output=name, optimizer=optimizer))  # type: ignore[arg-type]  # the two outputs
    losses = [json.loads(line)["loss"] for line in (tmp_path / "merged" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-4:]) < losses[0] - 0.5
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    before, merged, adapter = retbench.evaluate(
        [str(parent), "merged", "adapter"], tasks=[pantry], out=tmp_path / "results"
    )
    assert merged.settings_id == adapter.settings_id  # the same bytes
    assert merged.scores == adapter.scores != before.scores
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "merged" / "sentence-transformers"), device="cpu")
    loaded = load_backbone(tmp_path / "merged", "float32", CPU)
    ids = theirs.preprocess([sentences[0]])["input_ids"][0]
    states = loaded.compute_states([ids.numpy()]).flat.mean(0)
    plain = torch.from_numpy(theirs.encode(sentences[0]))
    assert_equal(states / states.norm(), plain)


@pytest.mark.parametrize("output", ["merged", "adapter", "all weights"])
@pytest.mark.parametrize(
    ("kind", "layout"), [(kind, "as saved") for kind in (*TEXT_KINDS, *VISION)] + [("gemma3", "hub of Gemma")]
)
def test_a_trained_model_is_the_parent_with_the_trained_weights(
    kind: str, layout: str, output: str, tmp_path: Path
) -> None:
    sample = build(kind)
    parent = write(sample, tmp_path / "parent", get_layout(kind, layout)[1])
    recipe = LORA if output != "all weights" else replace(LORA, lora=None)
    model: Any = lora.prepare_for_training(lora.load_model(parent, recipe), recipe).eval()
    assert not any("vision" in name or "visual" in name for name in lora.get_trainable_weights(model))
    with torch.no_grad():
        for weight in lora.get_trainable_weights(model).values():
            weight.add_(torch.randn_like(weight) * 0.1)
    folder = tmp_path / "trained"
    lora.save_trained_weights(model, folder, "parent")
    if recipe.lora:
        assert_equal(compute_states(parent), sample.compute_states())  # nothing of the parent was changed
        expected = sample.compute_states(add_adapters(sample.text, load_file(folder / adapters.ADAPTER_WEIGHTS)))
        adapters.merge_adapter(parent, folder, tmp_path / "merged")
        folder = tmp_path / "merged"
    else:
        tiny_models.build_tokenizer().save_pretrained(folder)
        trained = copy.deepcopy(sample.text)
        trained.load_state_dict(model.state_dict(), strict=kind not in ENCODERS)
        expected = sample.compute_states(trained)
    assert_equal(compute_states(folder), expected)
    assert float((expected - sample.compute_states()).abs().max()) > 0.01
    assert_equal(sample.compute_states(load_plain(folder)), expected)  # other libraries read it as well


def add_adapters(text: Any, adapter: dict[str, torch.Tensor], scale: float = 6 / 2) -> Any:
    """The text part with W + scale B A, by hand."""
    changed = copy.deepcopy(text)
    for name, down in adapter.items():
        layer, found, _ = name.removeprefix("base_model.model.").rpartition(".lora_A.")
        if found and not layer.startswith("pooler"):
            with torch.no_grad():
                changed.get_submodule(layer).weight += scale * adapter[name.replace("lora_A", "lora_B")] @ down
    return changed


def load_plain(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("kind", [*TEXT_KINDS, *VISION])
def test_missing_unknown_and_ill_shaped_weights_are_named(kind: str, tmp_path: Path) -> None:
    folder = write(build(kind), tmp_path / "model")
    changed = next(name for name in load_file(folder / "model.safetensors") if ".1." in name and "visi" not in name
                   and "visual" not in name and name.endswith("weight"))  # fmt: skip
    layer_name = changed.rpartition("1.")[2]
    weights = load_file(folder / "model.safetensors")

    def check(message: str, change: Callable[[dict[str, torch.Tensor]], Any], count: str = "") -> None:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        change_weights(folder, change)
        with pytest.raises(DataError, match=message) as caught:
            load_backbone(folder, "float32", CPU)
        assert count in caught.value.cause

    check(f"has no .*{layer_name}", lambda state: state.pop(changed))
    check("does not need.*scale_inv", lambda state: state.update({f"{changed}_scale_inv": torch.ones(1)}))
    check("in another shape.*", lambda state: state.update({changed: torch.ones(3)}))
    check("has no .* more ", lambda state: [state.pop(name) for name in list(state) if ".1." in name], "weights)")


@pytest.mark.parametrize(("kind", "layout"), sorted(REFUSED))
def test_a_layout_that_cannot_be_read_is_refused(kind: str, layout: str, tmp_path: Path) -> None:
    folder = write(build(kind), tmp_path / "model", get_layout(kind, layout)[1])
    with pytest.raises(DataError, match=r"has no .* more"):
        load_backbone(folder, "float32", CPU)


def test_sentence_transformers_gets_complete_weights_only(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = write(build("qwen2"), tmp_path / "model")
    load_sentence_transformers_model(folder, "float32", CPU, "mean")
    change_weights(folder, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(DataError, match=r"has no norm\.weight"):
        load_sentence_transformers_model(folder, "float32", CPU, "mean")


def test_a_language_model_without_its_head_is_refused(tmp_path: Path) -> None:
    sample = build("qwen2", tied=False)
    sample.whole.base_model.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match=r"has no lm_head\.weight"):
        model_loader.load_language_model(tmp_path / "model", "float32")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(build("qwen2"), tmp_path / "model", max_shard_size="40KB")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match="no model-00002-of-00003"):
        load_backbone(folder, "float32", CPU)


@pytest.mark.parametrize(
    ("kind", "prefix"), [("qwen2", "model."), ("bert", "bert."), ("gemma3", "model.language_model.")]
)
def test_an_adapter_of_a_whole_model_finds_its_layers(kind: str, prefix: str, tmp_path: Path) -> None:
    sample, parent, adapter = build(kind), tmp_path / "parent", tmp_path / "adapter"
    write(sample, parent)
    train_adapter(parent, adapter)
    expected = sample.compute_states(add_adapters(sample.text, load_file(adapter / adapters.ADAPTER_WEIGHTS)))

    def rename(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name.replace(adapters.BASE, adapters.BASE + prefix)] = state.pop(name)
        state["base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 16)

    change_weights(adapter, rename)
    adapters.merge_adapter(parent, adapter, tmp_path / "merged")
    assert_equal(compute_states(tmp_path / "merged"), expected)


def train_adapter(parent: Path, folder: Path, parent_name: str = "parent", seed: int = 0) -> None:
    model: Any = lora.prepare_for_training(lora.load_model(parent, LORA), LORA)
    torch.manual_seed(seed)
    make_random(model)
    lora.save_trained_weights(model, folder, parent_name)


def test_an_adapter_over_an_adapter_needs_both(tmp_path: Path) -> None:
    sample, parent = build("qwen2"), tmp_path / "parent"
    write(sample, parent)
    expected = copy.deepcopy(sample.text)
    for name, of in (("first", parent), ("second", tmp_path / "first")):
        train_adapter(parent, tmp_path / name, str(of), seed=len(name))
        expected = add_adapters(expected, load_file(tmp_path / name / adapters.ADAPTER_WEIGHTS))
    source = WeightsSource("path", "adapter", path=str(tmp_path / "second"), base_adapter="org/first")
    card = ModelCard("second", weights=source)
    assert_equal(compute_states(weights.obtain_weights(card).folder), sample.compute_states(expected))
    train_adapter(parent, tmp_path / "second", "org/parent")
    with pytest.raises(DataError, match=r"is an adapter over the adapter org/first, but .* names only org/parent"):
        weights.obtain_weights(card)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    parent, adapter = write(build("qwen2"), tmp_path / "parent"), tmp_path / "adapter"
    train_adapter(parent, adapter)
    weights = load_file(adapter / adapters.ADAPTER_WEIGHTS)
    first = min(weights)

    def check(message: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        save_file(weights, adapter / adapters.ADAPTER_WEIGHTS, {"format": "pt"})
        change_weights(adapter, change)
        with pytest.raises(DataError, match=message):
            adapters.merge_adapter(parent, adapter, tmp_path / "merged")

    check(f"has no {first}", lambda state: state.pop(first))
    check("does not need.*layers.7", lambda state: state.update({first.replace("layers.0", "layers.7"): torch.ones(2)}))
    check("does not fit its parent", lambda state: state.update({first: torch.ones(3, 5)}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "cannot be read: KeyError"),
        ('{"model": {"type": "WordPiece"}}', "cannot be read"),
        ('{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}', "has an empty vocabulary"),
    ],
)
def test_a_damaged_or_empty_tokenizer_is_refused(content: str, message: str, tmp_path: Path) -> None:
    folder = write(build("qwen2"), tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=rf"the tokenizer of .* {message}"):
        load_backbone(folder, "float32", CPU)


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = write(build(kind), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer: none of .*tokenizer\.json"):
        load_backbone(folder, "float32", CPU)
