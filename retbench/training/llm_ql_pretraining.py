"""llm-ql's first stage: all weights learn to say the query after the document's bottleneck, then stage 2 begins.

Its folder is a model of its own, head included: query likelihood is read from it, and the seam between the stages is
its card.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.recipe import Likelihood, Recipe
from retbench.encoders.prompt_tokenizer import Wording
from retbench.engines import backbone
from retbench.engines.device import device
from retbench.training import distributed, lora, save_model, step_plan
from retbench.training.cost_estimate import need_memory, planned_steps
from retbench.training.data import Wish
from retbench.training.query_likelihood import Lessons, Speaker
from retbench.training.save_model import Origin
from retbench.training.train_forward import Trainee
from retbench.training.train_loop import Run, Schedule
from retbench.training.training_set import TrainingSet

FOLDER = "stage-1"


def first_stage(
    wish: Wish, settings: Likelihood, name: str, folder: Path, origin: Origin, training: TrainingSet
) -> Path:
    """The folder of the weights stage 2 starts from; one that is finished is taken as it is."""
    own = folder / FOLDER
    if (own / catalog.CARD).exists():
        return own
    recipe = replace(wish.recipe, lora=None, output="merged")
    need_memory(origin.folder, recipe)
    lessons = Lessons(_speaker(origin.folder, recipe, settings), training, recipe.seed)
    data = {"set": training.name, "fingerprint": training.fingerprint, "pairs": len(training.queries), **training.facts}
    plan = {"recipe": asdict(wish.recipe), "parent": origin.fingerprint, "data": data}
    asked = replace(recipe, optimiser=settings.optimiser)
    steps = step_plan.steps_of(own, plan, lambda: planned_steps(lessons.order, asked))
    run = _learned(
        wish, lessons, recipe, own, Schedule(steps, settings.optimiser, recipe.save_steps, recipe.eval_steps)
    )
    if distributed.rank() == 0:
        save_model.write(own, f"{name}-{FOLDER}", _as_trainee(lessons.speaker, recipe), origin, _facts(wish, data, run))
    distributed.wait()
    return own


def _speaker(folder: Path, recipe: Recipe, settings: Likelihood) -> Speaker:
    model = lora.prepare(lora.load(folder, recipe, head=True).to(device()), recipe)
    return Speaker(model, backbone.tokenizer(folder), settings, recipe.dtype, device())


def _learned(wish: Wish, lessons: Lessons, recipe: Recipe, folder: Path, schedule: Schedule) -> Run:
    model = lessons.speaker.model
    run = Run(model, lora.trained(model), schedule, lessons.backward, folder, lessons.first_text, wish.report)
    run.resume()
    wish.say(f"stage 1: query likelihood in {schedule.steps:,} steps, from step {run.progress.step}")
    run.run()
    return run


def _as_trainee(speaker: Speaker, recipe: Recipe) -> Trainee:
    return Trainee(speaker.model, Wording(speaker.tokenizer, recipe.method), recipe, True, speaker.device)


def _facts(wish: Wish, data: dict[str, Any], run: Run) -> dict[str, Any]:
    told = {**asdict(run.progress), "steps": run.schedule.steps, "seed": wish.recipe.seed, "stage": 1}
    return {"data": data, "run": told, "command": wish.command}
