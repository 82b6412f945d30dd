"""Recipes that an earlier version stored, in today's form, so that one training compares as equal in both versions.

`plan.json` and the card of a trained model keep the recipe as it was. Since then keys may have been renamed and fields
added. The default of a new field always means what was done before the field existed.
"""

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from retbench.cards import options
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.recipe import CROSS_ENCODER_TEACHER, Recipe
from retbench.cards.recipe_keys import translate_recipe


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a model card stores it: without the folders of local files."""
    table = asdict(recipe)
    for part, key in ((table, "teacher"), (table["mining"], "file"), (table["mining"], "cross_encoder")):
        part[key] = _remove_folders(part[key]) if part[key] else part[key]
    return table


def _remove_folders(value: str) -> str:
    """The last part of an absolute path, also of one in `cross:model=PATH`."""
    name, changes = options.split_options(value) if value.startswith(CROSS_ENCODER_TEACHER) else ("", {})
    if Path(changes.get("model", "")).is_absolute():
        return options.join_options(name, {**changes, "model": Path(changes["model"]).name})
    return Path(value).name if Path(value).is_absolute() else value


def complete_recipe(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe under today's keys, with the defaults of the fields that it lacks; as JSON values."""
    recipe_class = Recipe if "objective" in stored else AdaptorRecipe
    completed = _add_defaults(translate_recipe(stored), recipe_class)
    plain: dict[str, Any] = json.loads(json.dumps(completed, default=asdict))
    return plain


def _add_defaults(table: dict[str, Any], card_class: type) -> dict[str, Any]:
    hints = get_type_hints(card_class)
    defaults = {field.name: field.default for field in fields(card_class) if field.default is not MISSING}
    completed = {**defaults, **table}
    for name, value in table.items():
        table_class = _find_dataclass(hints.get(name))
        if table_class and isinstance(value, dict):
            completed[name] = _add_defaults(value, table_class)
    return completed


def _find_dataclass(hint: Any) -> type | None:
    """The dataclass in a hint such as `LoraSettings | None`."""
    return next((part for part in (hint, *get_args(hint)) if is_dataclass(part) and isinstance(part, type)), None)
