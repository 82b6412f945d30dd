"""Trains the models of a study's stage; finished trainings are reused, interrupted ones resume."""

from typing import Any

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe, apply_adaptor_options
from retbench.cards.recipe import Recipe, apply_recipe_options
from retbench.cards.recipe_keys import ADAPTOR
from retbench.cards.study import Stage, Study
from retbench.pipelines.studies.cells import StudyCell, list_study_cells
from retbench.system.user_config import encode_path_part


def format_model_name(study: Study, stage: Stage, cell: StudyCell) -> str:
    """The name of the model that is trained for a cell; stages with the same training share the first one's model."""
    first = next(
        other
        for other in study.stages
        if (other.verb, other.options) == (stage.verb, stage.options) and cell.model in other.models
    )
    parts = [catalog.find_model_card(cell.model).name, study.name, first.name]
    parts += [cell.task] * stage.trains_per_task + ([f"seed{cell.seed}"] if cell.seed is not None else [])
    return "-".join(encode_path_part(part) for part in parts).lower()


def list_trained_names(study: Study) -> list[str]:
    """The names of all models that a study trains."""
    return list(find_parents(study))


def find_parents(study: Study) -> dict[str, str]:
    """The model from which each model of a study is trained, by the name of the trained one."""
    stages = [stage for stage in study.stages if stage.verb == "finetune"]
    cells = [(stage, cell) for stage in stages for cell in list_study_cells(study, stage) if not cell.needs]
    return {format_model_name(study, stage, cell): cell.model for stage, cell in cells}


def build_recipe(stage: Stage, cell: StudyCell) -> Recipe | AdaptorRecipe:
    """The recipe with the stage's changes and the cell's seed."""
    changes = dict(word.split("=", 1) for word in stage.options.get("set", ()))
    changes |= {"seed": str(cell.seed)} if cell.seed is not None else {}
    if stage.options.get("objective") == ADAPTOR:
        return apply_adaptor_options(AdaptorRecipe(), changes)
    return apply_recipe_options(catalog.find_recipe(stage.options["recipe"]), changes)


def train_model(study: Study, stage: Stage, cell: StudyCell, **output: Any) -> str:
    """Train a cell's model if it is not finished; return its name."""
    from retbench.pipelines.finetuning import train_adaptor, train_encoder

    request, recipe = _build_training_request(study, stage, cell, **output), build_recipe(stage, cell)
    if isinstance(recipe, AdaptorRecipe):
        train_adaptor.finetune_adaptor(request, recipe)
    else:
        train_encoder.finetune_encoder(request, recipe)
    return request.name or ""


def _build_training_request(study: Study, stage: Stage, cell: StudyCell, **output: Any) -> Any:
    from retbench.training.training_data import TrainingRequest

    dataset, split = stage.options.get("dataset", cell.argument), stage.options.get("split", "train")
    name = format_model_name(study, stage, cell)
    return TrainingRequest(dataset, cell.model, name, split=split, resume=True, **output)
