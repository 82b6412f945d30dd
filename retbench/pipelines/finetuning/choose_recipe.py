"""Choose the recipe of a fine-tuning: by name, file or objective, with the user's changes applied."""

from collections.abc import Mapping
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe, apply_adaptor_options, load_adaptor_recipe
from retbench.cards.recipe import Recipe, apply_recipe_options
from retbench.errors import UsageError

ADAPTOR = "adaptor"
DEFAULT_RECIPES = {"contrastive": "repllama", "llm2ir": "llm2ir", "llm-ql": "llm-ql", "e2rank": "e2rank"}


def check_objective(objective: str | None, adaptor_options: Mapping[str, object]) -> None:
    """Refuse an unknown objective, and options that the objective `adaptor` does not support."""
    if objective not in (None, *DEFAULT_RECIPES, ADAPTOR):
        raise UsageError(f"there is no objective {objective!r}", f"known: {', '.join(DEFAULT_RECIPES)}, {ADAPTOR}")
    if objective == ADAPTOR:
        option = next((name for name, value in adaptor_options.items() if value), None)
        if option:
            raise UsageError(
                f"objective adaptor does not support {option}",
                "leave it out: an adaptor trains for minutes, and is validated anyway",
            )


def choose_encoder_recipe(recipe_name: str | None, objective: str | None, changes: dict[str, str]) -> Recipe:
    """Find a recipe by name or file, else the default of the objective, and apply the changes of `--set`."""
    recipe = catalog.find_recipe(recipe_name or DEFAULT_RECIPES[objective or "contrastive"])
    recipe = apply_recipe_options(recipe, changes)
    if objective and recipe.objective != objective:
        raise UsageError(
            f"recipe {recipe.name} has objective {recipe.objective}, not {objective}", "give only one of the two"
        )
    return recipe


def choose_adaptor_recipe(file: str | None, changes: dict[str, str]) -> AdaptorRecipe:
    """Load an adaptor recipe from a file, else use the default, and apply the changes of `--set`."""
    if file and not Path(file).is_file():
        raise UsageError(f"there is no adaptor recipe at {file}", "give a TOML file, or leave --recipe out")
    recipe = load_adaptor_recipe(Path(file)) if file else AdaptorRecipe()
    return apply_adaptor_options(recipe, changes)
