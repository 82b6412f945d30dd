"""What a stage of a study trains: one model a row, found again where it is finished, gone on with where it is not."""

import json
from dataclasses import asdict
from typing import Any

from retbench.cards import catalog, options
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.recipe import Recipe, apply_recipe_options, describe_recipe
from retbench.cards.study import Stage, Study
from retbench.cards.user_config import encode_path_part
from retbench.errors import DataError
from retbench.pipelines.evaluation import dry_run as estimate
from retbench.pipelines.evaluation.request import Request
from retbench.pipelines.studies.cells import ADAPTOR, Slot

STANDING = "repllama"  # a wish names a backbone's recipe; an adaptor's stands beside it and this one is not read


def name(plan: Study, stage: Stage, slot: Slot) -> str:
    """What the model of a slot is called."""
    parts = [catalog.find_model_card(slot.model).name, plan.name, stage.name]
    parts += [slot.task] * stage.by_task + ([f"seed{slot.seed}"] if slot.seed is not None else [])
    return "-".join(encode_path_part(part) for part in parts).lower()


def recipe(stage: Stage, slot: Slot) -> Recipe | AdaptorRecipe:
    """The recipe with the stage's changes and the slot's seed."""
    changes = dict(word.split("=", 1) for word in stage.options.get("set", ()))
    changes |= {"seed": str(slot.seed)} if slot.seed is not None else {}
    if stage.options.get("objective") == ADAPTOR:
        return options.apply_options(AdaptorRecipe(), changes)
    return apply_recipe_options(catalog.find_recipe(stage.options["recipe"]), changes)


def trained(plan: Study, stage: Stage, slot: Slot, **show: Any) -> str:
    """The name of the model a slot is scored with, trained now if it was not."""
    from retbench.pipelines.finetuning import train_adaptor
    from retbench.pipelines.finetuning import train_encoder as story

    wish, wanted = _wish(plan, stage, slot, **show), recipe(stage, slot)
    if isinstance(wanted, AdaptorRecipe):
        train_adaptor.train_adaptor(wish, wanted)
    else:
        story.finetune(wish)
    _need_recipe(wish.name or "", wanted)
    return wish.name or ""


def _wish(plan: Study, stage: Stage, slot: Slot, **show: Any) -> Any:
    from retbench.training.training_data import TrainingRequest

    wanted = recipe(stage, slot)
    plain = catalog.find_recipe(STANDING) if isinstance(wanted, AdaptorRecipe) else wanted
    dataset, split = stage.options.get("dataset", slot.argument), stage.options.get("split", "train")
    return TrainingRequest(dataset, slot.model, plain, name(plan, stage, slot), split=split, resume=True, **show)


def _need_recipe(model: str, wanted: Recipe | AdaptorRecipe) -> None:
    """Refuse a finished model that an earlier edition of the plan trained; fields newer than its card do not count."""
    training = catalog.find_model_card(model).training
    learned = _plain(training.recipe if training else {})
    asked = _plain(describe_recipe(wanted) if isinstance(wanted, Recipe) else asdict(wanted))
    other = [field for field in learned if learned[field] != asked.get(field)]
    if other:
        raise DataError(
            f"{model} was trained with another {', '.join(other)} than the plan asks for",
            "remove its folder (retbench show model NAME says where), and run the study again",
        )


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """As a card holds it: lists for tuples, and nothing where nothing was said."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe), object_hook=_said)
    return plain


def _said(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def cost(plan: Study, stage: Stage, row: list[Slot], known: dict[str, Any]) -> dict[str, Any]:
    """Tokens, seconds and disk of a row's training; measured once for all seeds, which `known` remembers."""
    from retbench.pipelines.finetuning import train_encoder as story

    slot, called = row[0], name(plan, stage, row[0])
    facts = {**asdict(slot), "task": "-", "training": called}
    if called in catalog.load_model_cards():
        return {**facts, "status": "done"}
    if stage.options.get("objective") == ADAPTOR:
        return {**facts, "status": "open", "reason": "minutes, once its vectors are stored"}
    key = f"{slot.model} {stage.options.get('dataset', slot.argument)}"
    if key not in known:
        plan_ = story.estimate_training_plan(_wish(plan, stage, slot))
        known[key] = {"tokens": plan_["tokens"], "seconds": 60 * plan_["minutes"], "disk_bytes": plan_["disk_bytes"]}
    return {**facts, "status": "open", **known[key]}


def scored(plan: Study, stage: Stage, row: list[Slot], **rest: Any) -> list[dict[str, Any]]:
    """The dry run of a row's cells: by the trained model if it is there, else as its parent would be scored."""
    tasks, called = tuple(slot.argument for slot in row), name(plan, stage, row[0])
    if called in catalog.load_model_cards():
        return list(estimate.dry_run(Request((called,), tasks, sample=stage.sample, overrides=stage.set, **rest)))
    wanted = recipe(stage, row[0])
    methods = (
        (wanted.method.name,) if isinstance(wanted, Recipe) and wanted.method.name in catalog.load_methods() else ()
    )
    request = Request((row[0].model,), tasks, methods, sample=stage.sample, overrides=stage.set, **rest)
    return [{**cell, "cached": False} for cell in estimate.dry_run(request)]
