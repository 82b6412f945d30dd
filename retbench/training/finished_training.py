"""Check that a finished training is the one that is asked for, so that `--resume` never hands out another model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.model import ModelCard
from retbench.cards.recipe import Recipe
from retbench.cards.stored_recipe import complete_recipe, describe_recipe
from retbench.errors import DataError
from retbench.training.step_plan import describe_changes
from retbench.training.training_data import TrainingRequest, name_dataset


def require_same_training(
    card: ModelCard, folder: Path, request: TrainingRequest, recipe: Recipe | AdaptorRecipe
) -> None:
    """Raise an error if the finished model in `folder` has another parent, dataset, split or recipe."""
    training = card.training
    if training is None:
        raise DataError(f"{folder} has a model that was not trained by retbench", "give another --out or --name")
    asked = describe_recipe(recipe) if isinstance(recipe, Recipe) else asdict(recipe)
    trained = {
        "model": card.parent,
        "dataset": training.data.get("set"),
        "split": training.data.get("split"),
        "recipe": _to_card_form(complete_recipe(training.recipe)),
    }
    wanted = {
        "model": catalog.find_model_card(request.model).name,
        "dataset": name_dataset(request.dataset),
        "split": request.split if "split" in training.data else None,
        "recipe": _to_card_form(asked),
    }
    if changes := describe_changes(trained, wanted):
        raise DataError(
            f"{folder} is finished, and it was trained otherwise: {changes}",
            "give the old values, remove the folder to train again, or give another --out or --name",
        )


def _to_card_form(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as a card stores it: tuples become lists, None is left out."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe), object_hook=_drop_missing)
    return plain


def _drop_missing(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}
