"""llm-ql's first stage: all weights learn to say the query after the document's bottleneck, then stage 2 begins.

Its folder is a model of its own, head included: query likelihood is read from it, and the seam between the stages is
its card.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.recipe import QueryLikelihoodTraining, Recipe
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone
from retbench.engines.device import get_device
from retbench.training import distributed, lora, save_model, step_plan
from retbench.training.cost_estimate import check_memory, count_steps
from retbench.training.query_likelihood import QueryLikelihoodModel, QueryLikelihoodObjective
from retbench.training.save_model import ParentWeights
from retbench.training.train_forward import TrainableEncoder
from retbench.training.train_loop import TrainLoop, TrainSchedule
from retbench.training.training_data import TrainingRequest
from retbench.training.training_set import TrainingSet

STAGE_FOLDER = "stage-1"


def pretrain_query_likelihood(
    wish: TrainingRequest,
    settings: QueryLikelihoodTraining,
    name: str,
    folder: Path,
    origin: ParentWeights,
    training: TrainingSet,
) -> Path:
    """The folder of the weights stage 2 starts from; one that is finished is taken as it is."""
    own = folder / STAGE_FOLDER
    if (own / catalog.CARD_FILE).exists():
        return own
    recipe = replace(wish.recipe, lora=None, output="merged")
    check_memory(origin.folder, recipe)
    lessons = QueryLikelihoodObjective(_load_language_model(origin.folder, recipe, settings), training, recipe.seed)
    data = {"set": training.name, "fingerprint": training.fingerprint, "pairs": len(training.queries), **training.facts}
    plan = {"recipe": asdict(wish.recipe), "parent": origin.fingerprint, "data": data}
    asked = replace(recipe, optimiser=settings.optimizer)
    steps = step_plan.load_or_create_plan(own, plan, lambda: count_steps(lessons.sampler, asked))
    run = _run_loop(
        wish, lessons, recipe, own, TrainSchedule(steps, settings.optimizer, recipe.save_steps, recipe.eval_steps)
    )
    if distributed.get_rank() == 0:
        save_model.save_model(
            own,
            f"{name}-{STAGE_FOLDER}",
            _as_encoder(lessons.language_model, recipe),
            origin,
            _describe_run(wish, data, run),
        )
    distributed.wait_for_all()
    return own


def _load_language_model(folder: Path, recipe: Recipe, settings: QueryLikelihoodTraining) -> QueryLikelihoodModel:
    model = lora.prepare_for_training(lora.load_model(folder, recipe, head=True).to(get_device()), recipe)
    return QueryLikelihoodModel(model, backbone.tokenizer(folder), settings, recipe.dtype, get_device())


def _run_loop(
    wish: TrainingRequest, lessons: QueryLikelihoodObjective, recipe: Recipe, folder: Path, schedule: TrainSchedule
) -> TrainLoop:
    model = lessons.language_model.model
    run = TrainLoop(
        model,
        lora.get_trainable_weights(model),
        schedule,
        lessons.backward,
        folder,
        lessons.get_first_query,
        wish.report,
    )
    run.resume()
    wish.say(f"stage 1: query likelihood in {schedule.steps:,} steps, from step {run.progress.step}")
    run.run()
    return run


def _as_encoder(speaker: QueryLikelihoodModel, recipe: Recipe) -> TrainableEncoder:
    return TrainableEncoder(
        speaker.model, PromptTokenizer(speaker.tokenizer, recipe.method), recipe, True, speaker.device
    )


def _describe_run(wish: TrainingRequest, data: dict[str, Any], run: TrainLoop) -> dict[str, Any]:
    told = {**asdict(run.progress), "steps": run.schedule.steps, "seed": wish.recipe.seed, "stage": 1}
    return {"data": data, "run": told, "command": wish.command}
