"""Active and embedding parameters, counted from weights and config: against torch's own count of the loaded model."""

import json
from pathlib import Path
from typing import Any

import pytest

from retbench.engines.weight_sizes import ParameterCounts, count_parameters_by_use
from tests.test_run import run_cells, run_command

EXPERTS, USED, VOCABULARY, WIDTH = 4, 2, 60, 16


def save_model(folder: Path, config: Any) -> Any:
    """Save a language model with random weights, and return it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


def build_config(kind: str, **settings: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, pad_token_id=0, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_the_vocabulary_are_not_active(tmp_path: Path, tied: bool) -> None:
    model = save_model(tmp_path, build_config("qwen2", tie_word_embeddings=tied))
    layers = sum(weight.numel() for weight in [*model.model.layers.parameters(), *model.model.norm.parameters()])
    total = layers + VOCABULARY * WIDTH * (1 if tied else 2)
    assert count_parameters_by_use(tmp_path) == ParameterCounts(total, VOCABULARY * WIDTH, layers)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_of_the_experts_only_those_that_a_token_uses_are_active(tmp_path: Path, kind: str) -> None:
    config = build_config(
        kind, num_local_experts=EXPERTS, num_experts=EXPERTS, num_experts_per_tok=USED, moe_intermediate_size=24,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = save_model(tmp_path, config)
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    everything = sum(weight.numel() for weight in model.parameters())
    counts = count_parameters_by_use(tmp_path)
    assert counts
    assert experts
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["num_experts_per_tok"] == USED
    unused = experts * (EXPERTS - USED) // EXPERTS
    assert counts.active == everything - VOCABULARY * WIDTH - unused


def test_what_the_config_does_not_say_is_left_out(tmp_path: Path) -> None:
    save_model(tmp_path, build_config("mixtral", num_local_experts=EXPERTS, num_experts_per_tok=USED))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_experts_per_tok"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    counts = count_parameters_by_use(tmp_path)
    assert counts
    assert counts.active is None
    assert counts.embedding == VOCABULARY * WIDTH


def test_a_folder_without_safetensors_has_no_counts(tmp_path: Path) -> None:
    assert count_parameters_by_use(tmp_path) is None


def test_records_and_show_have_the_counts(model: Path, task: Path, out: Path) -> None:
    (cell,) = run_cells("run", "--model", model, "--task", task, "--method", "mean", "--out", out)
    cost = json.loads((Path(cell["record"]) / "record.json").read_text())["cost"]
    counts = count_parameters_by_use(model)
    assert counts
    assert (cost["parameters"], cost["embedding_parameters"]) == (counts.total, counts.embedding)
    assert cost["active_parameters"] == counts.active
    shown = json.loads(run_command("show", "model", model, "--json").stdout)
    assert (shown["embedding_parameters"], shown["active_parameters"]) == (counts.embedding, counts.active)
    assert "active (M)" in run_command("report", out).output
