"""The preview of prompts and token ids, vision-language models, and cards of installed packages."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone
from retbench.engines.tokenizers import load_tokenizer
from tests import plain_transformers, tiny_models
from tests.test_run import run_cells, run_command


def test_every_method_shows_its_text_and_token_ids(model: Path) -> None:
    answer = run_command("show", "model", model, "--text", "The heart pumps blood.", "--json")
    assert answer.exit_code == 0, answer.output
    previews = json.loads(answer.stdout)
    tokenizer = load_tokenizer(model)
    assert previews["tokenizer"]["eos"] == {"text": tokenizer.eos_token, "id": tokenizer.eos_token_id}
    assert "You are a tiny helpful model." in previews["tokenizer"]["chat"]
    assert {one["method"] for one in previews["readings"]} == {method.name for method in catalog.load_methods()}
    for one in previews["readings"]:
        if one["method"] in plain_transformers.METHODS:
            pooled_ids = plain_transformers.METHODS[one["method"]](
                tokenizer, "The heart pumps blood.", one["role"], 512
            )
            assert one["ids"] == pooled_ids.ids
            assert one["read"] == tokenizer.decode(pooled_ids.ids)


def test_one_method_is_printed_as_text(model: Path) -> None:
    answer = run_command("show", "model", model, "--text", "Bees.", "--method", "echo", "--method", "promptreps-study")
    assert "'Document:Bees.\\nDocument again:Bees." in answer.output
    assert "<|im_start|>system\\nYou are a tiny helpful model." in answer.output
    assert "from token " in answer.output


def test_a_method_that_does_not_apply_shows_the_reason(tmp_path: Path) -> None:
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tiny_models.build_model(tmp_path / "bare"))
    (tmp_path / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    answer = run_command("show", "model", tmp_path / "bare", "--text", "Bees.", "--method", "promptreps")
    assert "needs a chat template" in answer.output


def test_a_text_needs_a_model() -> None:
    assert run_command("show", "task", "stdlib-text", "--text", "x").exit_code == 2


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "vision"
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {"vocab_size": tiny_models.VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    vision_config = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    torch.manual_seed(tiny_models.SEED)
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision_config, "fullatt_block_indexes": [0]})
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tiny_models.build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["own", "bidirectional"])
def test_a_vision_language_model_encodes_text_without_its_vision_tower(vision: Path, attention: str) -> None:
    from transformers import AutoModel

    loaded = backbone.load_backbone(vision, "float32", torch.device("cpu"))
    assert not [name for name, _ in loaded.model.named_parameters() if "visual" in name]
    ids = PromptTokenizer(loaded.tokenizer, catalog.find_method("last")).tokenize(
        tiny_models.SENTENCES[:3], "query", 64
    )
    full_model = AutoModel.from_pretrained(vision, dtype=torch.float32).eval()
    if attention == "bidirectional":
        full_model.config.get_text_config().is_causal = False
        full_model.language_model.config.is_causal = False
    flat, offsets = loaded.with_method(attention, None).compute_states(list(ids))  # type: ignore[arg-type]
    for row in range(3):
        with torch.no_grad():
            expected = full_model(torch.from_numpy(ids[row].astype(np.int64))[None]).last_hidden_state[0]
        actual = flat[offsets[row] : offsets[row + 1]]
        assert torch.nn.functional.cosine_similarity(actual, expected).min() > 0.99999


def test_the_record_of_a_vision_language_model_says_when_its_tower_is_loaded(
    vision: Path, task: Path, out: Path
) -> None:
    line = ("run", "--model", vision, "--task", task, "--out", out)
    for cell in run_cells(*line, "--method", "mean", "--method", "promptreps-sparse"):
        record = json.loads((Path(cell["record"]) / "record.json").read_text())
        notes = record["cards"]["model"]["notes"]
        assert any("vision tower is loaded only for a collection with images" in note for note in notes)


PACKAGE = {
    "my_cards-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-cards\nVersion: 1\n",
    "my_cards-1.dist-info/entry_points.txt": "[retbench.cards]\nmine = my_cards\n",
    "my_cards/__init__.py": "raise RuntimeError('looking for cards runs no code')\n",
    "my_cards/model_cards/mine.toml": 'name = "my-model"\n[weights]\nsource = "path"\npath = "~/my-model"\n',
    "my_cards/methods/keyword.toml": (
        'name = "keyword"\ntitle = "a keyword"\nfidelity = "ours"\nsource = "a test"\npooling = "last"\n'
        'query = "{text}\\nKeyword:"\n'
    ),
}


def test_an_installed_package_adds_cards_and_methods(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_catalog: Callable[[], None],
) -> None:
    for name, content in PACKAGE.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert [point.module for point in importlib.metadata.entry_points(group="retbench.cards")] == ["my_cards"]
    fresh_catalog()
    assert catalog.find_model_card("my-model").weights is not None
    assert catalog.find_method("keyword").query == "{text}\nKeyword:"
    assert "keyword" in run_command("list", "methods").output
    assert "Bees.\\nKeyword:" in run_command("show", "model", model, "--text", "Bees.", "--method", "keyword").output
