"""Stage 1 of llm-ql: all weights are trained to predict the query from the document's bottleneck token.

The result is a model folder of its own, with the language-model head: the query-likelihood reranker reads it, and stage
2 starts from it.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.recipe import QueryLikelihoodTraining, Recipe
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.device import get_device
from retbench.engines.tokenizers import load_tokenizer
from retbench.training import distributed, fsdp, lora, save_model, step_plan
from retbench.training.cost_estimate import check_memory, count_steps
from retbench.training.query_likelihood import QueryLikelihoodModel, QueryLikelihoodObjective
from retbench.training.save_model import ParentWeights
from retbench.training.train_forward import TrainableEncoder
from retbench.training.train_loop import TrainLoop, TrainSchedule
from retbench.training.training_data import TrainingRequest
from retbench.training.training_set import TrainingSet

STAGE_FOLDER = "stage-1"


def pretrain_query_likelihood(
    request: TrainingRequest, recipe: Recipe, name: str, folder: Path, parent: ParentWeights, training_set: TrainingSet
) -> Path:
    """Run stage 1 and return its folder; a finished folder is used as it is."""
    stage_folder, settings = folder / STAGE_FOLDER, recipe.query_likelihood
    if settings is None:
        return stage_folder
    data = training_set.describe(len(training_set.queries))
    plan = {"recipe": asdict(recipe), "parent": parent.fingerprint, "data": data}
    if (stage_folder / catalog.CARD_FILE).exists():
        step_plan.require_same_plan(stage_folder, plan)
        return stage_folder
    stage_recipe = replace(recipe, lora=None, output="merged")
    check_memory(parent.folder, stage_recipe)
    model = _load_language_model(parent.folder, stage_recipe, settings)
    objective = QueryLikelihoodObjective(model, training_set, recipe.seed)
    steps_recipe = replace(stage_recipe, optimizer=settings.optimizer)
    steps = step_plan.load_or_create_plan(stage_folder, plan, lambda: count_steps(objective.sampler, steps_recipe))
    schedule = TrainSchedule(steps, settings.optimizer, recipe.save_steps, recipe.eval_steps)
    loop = _run_loop(request, objective, stage_folder, schedule)
    state = fsdp.gather_state(model.model)
    if distributed.get_rank() == 0:
        facts = _describe_run(request, recipe, data, loop)
        encoder = _as_encoder(model, stage_recipe)
        save_model.save_model(stage_folder, f"{name}-{STAGE_FOLDER}", encoder, parent, facts, state)
    distributed.wait_for_all()
    return stage_folder


def _load_language_model(folder: Path, recipe: Recipe, settings: QueryLikelihoodTraining) -> QueryLikelihoodModel:
    model = lora.prepare_for_training(lora.load_model(folder, recipe, head=True), recipe)
    is_sharded, device = recipe.sharding == "fsdp", get_device()
    model = fsdp.shard_model(model, device, recipe.dtype) if is_sharded else model.to(device)
    language_model = QueryLikelihoodModel(model, load_tokenizer(folder), settings, recipe.dtype, get_device())
    fsdp.release_gathered_weights(model)  # the mask was checked by a pass
    return language_model


def _run_loop(
    request: TrainingRequest, objective: QueryLikelihoodObjective, folder: Path, schedule: TrainSchedule
) -> TrainLoop:
    model = objective.language_model.model
    loop = TrainLoop(model, lora.get_trainable_weights(model), schedule, objective, folder, request.log_metrics)
    loop.resume()
    request.log_status(f"stage 1, query likelihood: {schedule.steps:,} steps, from step {loop.progress.step}")
    loop.run()
    return loop


def _as_encoder(model: QueryLikelihoodModel, recipe: Recipe) -> TrainableEncoder:
    return TrainableEncoder(model.model, PromptTokenizer(model.tokenizer, recipe.method), recipe, True, model.device)


def _describe_run(request: TrainingRequest, recipe: Recipe, data: dict[str, Any], loop: TrainLoop) -> dict[str, Any]:
    run = {**asdict(loop.progress), "steps": loop.schedule.steps, "seed": recipe.seed, "stage": 1}
    return {"data": data, "run": run, "command": request.command}
