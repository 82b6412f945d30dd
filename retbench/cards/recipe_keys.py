"""The recipe keys that were renamed, old to new.

Recipes and `--set` use the words of Hugging Face, peft and Tevatron. A user who types an old key gets an error with the
new one. What was stored under old keys (the card of a trained model, `plan.json`, records) is never rewritten: it is
translated when it is read, so that one training compares as equal under both spellings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retbench.errors import UsageError
from retbench.system.text_parsers import parse_toml
from retbench.system.toml_parser import CardLocation

ADAPTOR = "adaptor"  # the recipe of an adaptor has no tables; its keys are listed under this name

# by table (with its new name), "" for keys outside tables
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "": {
        "contrast": "contrastive",
        "optimiser": "optimizer",
        "lists": "listwise",
        "likelihood": "query_likelihood",
        "recompute": "gradient_checkpointing",
    },
    "contrastive": {
        "negatives": "hard_negatives",
        "both_directions": "symmetric",
        "spare_known": "mask_known_positives",
        "matryoshka": "matryoshka_dimensions",
        "distillation": "distillation_weight",
    },
    "mining": {
        "first": "rank_from",
        "last": "rank_to",
        "margin": "max_score_ratio",
        "keep": "negatives_per_query",
    },
    "batch": {
        "contrast": "contrastive_batch_size",
        "update": "train_batch_size",
        "tokens": "max_tokens",
        "caching": "gradient_caching",
    },
    "optimizer": {
        "rate": "learning_rate",
        "epochs": "num_train_epochs",
        "warmup": "warmup_type",
        "warmup_share": "warmup_ratio",
        "decay": "lr_scheduler_type",
        "clip": "max_grad_norm",
    },
    "lora": {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"},
    "crops": {"shortest": "min_ratio", "longest": "max_ratio", "least": "min_tokens"},
    "listwise": {"documents": "max_documents", "length": "max_tokens"},
    "query_likelihood": {"optimiser": "optimizer", "corruption": "corruption_ratio", "blank": "mask_word"},
    ADAPTOR: {
        "rate": "learning_rate",
        "batch": "batch_size",
        "iterations": "max_steps",
        "every": "eval_steps",
        "negatives": "negatives_per_pair",
        "top": "negatives_top_k",
        "ranking": "ranking_weight",
        "validation": "validation_ratio",
        "queries": "max_queries",
    },
}


def translate_key(dotted_key: str, table: str = "") -> str:
    """The key as it is written today: `optimiser.rate` becomes `optimizer.learning_rate`."""
    new_keys: list[str] = []
    for key in dotted_key.split("."):
        table = new_keys[-1] if new_keys else table
        new_keys.append(RENAMED_KEYS.get(table, {}).get(key, key))
    return ".".join(new_keys)


def restore_key(dotted_key: str, table: str = "") -> str:
    """The key as it was written before the renaming, for digests that are already stored."""
    new_keys = dotted_key.split(".")
    old_keys = []
    for parent, key in zip([table, *new_keys], new_keys, strict=False):
        old_names = {new: old for old, new in RENAMED_KEYS.get(parent, {}).items()}
        old_keys.append(old_names.get(key, key))
    return ".".join(old_keys)


def translate_recipe(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe under today's keys; its values stay."""
    return _translate_table(stored, "" if "objective" in stored else ADAPTOR)


def _translate_table(table: dict[str, Any], name: str) -> dict[str, Any]:
    new_names = {key: RENAMED_KEYS.get(name, {}).get(key, key) for key in table}
    return {
        new_names[key]: _translate_table(value, new_names[key]) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def check_option_keys(options: dict[str, str], table: str = "") -> None:
    """Refuse an old key of `--set` and name the new one."""
    for key in options:
        if (new_key := translate_key(key, table)) != key:
            raise UsageError(f"--set {key}: this key is now {new_key}", f"write --set {new_key}=VALUE")


def check_file_keys(file: Path, table: str = "") -> None:
    """Refuse old keys in a recipe file and name all the new ones."""
    try:
        text = file.read_text(encoding="utf-8")
        keys = list(_iterate_keys(parse_toml(text)))
    except ValueError:  # not UTF-8 or not TOML: the card parser names the place
        return
    renamed = {key: new_key for key in keys if (new_key := translate_key(key, table)) != key}
    if renamed:
        first_key, new_key = next(iter(renamed.items()))
        location = CardLocation(file, text, tuple(first_key.split(".")))
        changes = ", ".join(f"{old} -> {new}" for old, new in renamed.items())
        raise location.make_error(f"this key is now {new_key}", f"rename {changes}")


def _iterate_keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _iterate_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
