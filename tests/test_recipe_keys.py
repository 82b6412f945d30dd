"""Renamed recipe keys: old keys are refused with the new name, and stored ones are translated when they are read."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from retbench.cards import catalog, recipe_keys
from retbench.cards.adaptor_recipe import AdaptorRecipe, apply_adaptor_options
from retbench.cards.mining import MiningSettings
from retbench.cards.recipe import (
    BatchSettings,
    ContrastiveSettings,
    CropSettings,
    ListwiseTraining,
    LoraSettings,
    OptimizerSettings,
    QueryLikelihoodTraining,
    Recipe,
    apply_recipe_options,
)
from retbench.cards.stored_recipe import complete_recipe
from retbench.errors import DataError, UsageError


def test_old_and_new_recipe_keys_name_the_same_training() -> None:
    stored = {
        "objective": "llm-ql",
        "optimiser": {"rate": 1e-4, "max_steps": 3},
        "likelihood": {"corruption": 0.5, "optimiser": {"epochs": 2}, "lengths": {"query": 8}},
        "batch": {"contrast": 4, "update": 8},
        "method": {"name": "mean", "cut": "tokens"},
        "lora": None,
    }
    translated = recipe_keys.translate_recipe(stored)
    assert translated == {
        "objective": "llm-ql",
        "optimizer": {"learning_rate": 1e-4, "max_steps": 3},
        "query_likelihood": {
            "corruption_ratio": 0.5,
            "optimizer": {"num_train_epochs": 2},
            "lengths": {"query": 8},
        },
        "batch": {"contrastive_batch_size": 4, "train_batch_size": 8},
        "method": {"name": "mean", "cut": "tokens"},
        "lora": None,
    }
    assert recipe_keys.translate_recipe(translated) == translated
    assert recipe_keys.translate_recipe({"rate": 0.1, "batch": 8, "top": 5}) == {
        "learning_rate": 0.1, "batch_size": 8, "negatives_top_k": 5,
    }  # fmt: skip


def test_a_stored_recipe_gets_the_defaults_of_newer_fields() -> None:
    recipe = json.loads(json.dumps(asdict(catalog.find_recipe("llm-ql"))))
    stored = json.loads(json.dumps(recipe))
    del stored["save_steps"], stored["optimizer"]["warmup_ratio"]
    del stored["query_likelihood"]["optimizer"]["weight_decay"]
    assert complete_recipe(stored) == recipe
    assert complete_recipe({**stored, "removed": 1}) == {**recipe, "removed": 1}
    assert complete_recipe({"rate": 0.1, "alpha": [0.5]}) == json.loads(
        json.dumps(asdict(AdaptorRecipe(learning_rate=0.1, alpha=(0.5,))))
    )


def test_an_old_llm_ql_recipe_is_an_error_with_every_new_key(tmp_path: Path) -> None:
    old_keys = {
        "query_likelihood": "likelihood", "optimizer": "optimiser", "corruption_ratio": "corruption",
        "mask_word": "blank", "learning_rate": "rate", "num_train_epochs": "epochs",
    }  # fmt: skip
    text = (Path(__file__).parent.parent / "recipes" / "llm-ql.toml").read_text(encoding="utf-8")
    for new, old in old_keys.items():
        text = text.replace(new, old)
    file = tmp_path / "old.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"old\.toml:\d+: .*: this key is now ") as refused:
        catalog.find_recipe(str(file))
    for change in (
        "likelihood.corruption -> query_likelihood.corruption_ratio",
        "likelihood.optimiser.rate -> query_likelihood.optimizer.learning_rate",
        "likelihood.document -> query_likelihood.document",
        "optimiser.rate -> optimizer.learning_rate",
    ):
        assert change in refused.value.next_step
    assert "\n" not in refused.value.cause + refused.value.next_step


def test_a_list_is_an_option_as_in_toml() -> None:
    recipe = apply_recipe_options(catalog.find_recipe("quick"), {"lora.target_modules": '["q_proj", "v_proj"]'})
    assert recipe.lora
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    assert apply_recipe_options(recipe, {"description": "[a, b]"}).description == "[a, b]"  # a text stays a text


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        ("quick", "teacher=none", "teacher cannot be none"),
        ("quick", "seed=none", "seed cannot be none"),
        ("quick", "lengths=none", "lengths cannot be none"),
        ("quick", "lengths.query=0", "query = 0 is below 1"),  # it was trained on queries without a text
        ("quick", "save_steps=0", "save_steps = 0 is below 1"),
        ("quick", "eval_steps=0", "eval_steps = 0 is below 1"),
        ("quick", "max_minutes=0", "max_minutes = 0.0 is not above 0"),
        ("quick", "batch.max_tokens=0", "max_tokens = 0 is below 1"),
        ("quick", "batch.train_batch_size=0", "train_batch_size = 0 is below 1"),
        ("quick", "optimizer.num_train_epochs=0", "num_train_epochs = 0 is below 1"),
        ("quick", "optimizer.max_steps=0", "max_steps = 0 is below 1"),
        ("quick", "optimizer.learning_rate=-1", "learning_rate = -1.0 is below 0"),
        ("quick", "optimizer.warmup_ratio=3", "warmup_ratio = 3.0 is not between 0 and 1"),
        ("quick", "contrastive.matryoshka_dimensions=[0]", "a width is below 1"),
        ("quick", "contrastive.hard_negatives=-1", "hard_negatives = -1 is below 0"),
        ("quick", "mining.negatives_per_query=0", "negatives_per_query = 0 is below 1"),
        ("repllama", "lora.r=0", "r = 0 is below 1"),
        ("repllama", "lora.lora_dropout=2", "lora_dropout = 2.0 is not between 0 and 1"),
        ("llm2ir", "crops.max_ratio=2", "are no range"),
        ("llm-ql", "query_likelihood.corruption_ratio=60", "is not between 0 and 1"),
        ("llm-ql", "query_likelihood.lengths.document=0", "document = 0 is below 1"),
        ("e2rank", "listwise.max_queries_per_source=0", "is below 1"),
    ],
)
def test_a_value_that_cannot_be_trained_with_is_refused(recipe: str, option: str, message: str) -> None:
    key, value = option.split("=")
    with pytest.raises(UsageError, match=message):
        apply_recipe_options(catalog.find_recipe(recipe), {key: value})


def test_every_renamed_key_is_a_field_today() -> None:
    owners = {
        "": Recipe, "contrastive": ContrastiveSettings, "mining": MiningSettings, "batch": BatchSettings,
        "optimizer": OptimizerSettings, "lora": LoraSettings, "crops": CropSettings, "listwise": ListwiseTraining,
        "query_likelihood": QueryLikelihoodTraining, recipe_keys.ADAPTOR: AdaptorRecipe,
    }  # fmt: skip
    assert recipe_keys.RENAMED_KEYS.keys() == owners.keys()
    for table, renamed in recipe_keys.RENAMED_KEYS.items():
        names = {field.name for field in fields(owners[table])}
        assert set(renamed.values()) <= names
        assert not set(renamed) & names


def test_an_old_key_of_a_recipe_is_an_error_with_the_new_one(tmp_path: Path) -> None:
    recipe = catalog.find_recipe("quick")
    with pytest.raises(UsageError, match=r"optimiser\.rate: this key is now optimizer\.learning_rate") as caught:
        apply_recipe_options(recipe, {"optimiser.rate": "1e-3"})
    assert caught.value.next_step == "write --set optimizer.learning_rate=VALUE"
    with pytest.raises(UsageError, match=r"now query_likelihood\.optimizer\.num_train_epochs"):
        apply_recipe_options(recipe, {"likelihood.optimiser.epochs": "2"})
    with pytest.raises(UsageError, match="now query_likelihood"):
        apply_recipe_options(recipe, {"likelihood": "none"})
    with pytest.raises(UsageError, match="now learning_rate"):
        apply_adaptor_options(AdaptorRecipe(), {"rate": "1e-3"})
    file = tmp_path / "old.toml"
    shipped = (Path(__file__).parent.parent / "recipes" / "quick.toml").read_text(encoding="utf-8")
    file.write_text(shipped.replace("[optimizer]\nlearning_rate", "[optimiser]\nrate").replace("lora_alpha", "alpha"))
    with pytest.raises(DataError, match=r"old\.toml:\d+: optimiser\.rate: this key is now") as refused:
        catalog.find_recipe(str(file))
    assert "optimiser.rate -> optimizer.learning_rate" in refused.value.next_step
    assert "lora.alpha -> lora.lora_alpha" in refused.value.next_step
