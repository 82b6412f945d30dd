"""The finetune story: recipe and data are named, leaks taken out, negatives found, weights trained, a card written."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.recipe import Recipe
from retbench.corpora.open_collection import open_collection
from retbench.encoders.prompt_tokenizer import Wording
from retbench.engines import backbone, model_folders, weights
from retbench.engines.device import device
from retbench.errors import DataError, UsageError
from retbench.pipelines.teaching import taught
from retbench.records.phase_timer import Meter, Silent
from retbench.training import (
    checkpoint,
    distributed,
    fsdp,
    hard_negatives,
    in_training_search,
    lora,
    save_model,
    sentence_transformers_export,
    step_plan,
)
from retbench.training import data as data_module
from retbench.training.contrastive_batches import Labelled, Order, Source
from retbench.training.cost_estimate import Forecast, forecast, need_memory, planned_steps
from retbench.training.data import Wish
from retbench.training.evaluator import Examiner
from retbench.training.experiment_trackers import tracked
from retbench.training.gradient_caching import backward
from retbench.training.listwise_batches import Ranked
from retbench.training.llm_ql_pretraining import first_stage
from retbench.training.random_crops import Cropped
from retbench.training.save_model import Origin
from retbench.training.train_forward import Trainee
from retbench.training.train_loop import Run, Schedule
from retbench.training.training_set import TrainingSet

NEGATIVES = "negatives.jsonl"


@dataclass(frozen=True)
class Course:
    """Everything a training needs, before its first step."""

    wish: Wish
    name: str
    folder: Path
    origin: Origin
    trainee: Trainee
    source: Source
    data: dict[str, Any]

    @property
    def order(self) -> Order:
        """Which queries each step takes."""
        return Order(len(self.source), self.wish.recipe.batch, self.wish.recipe.seed)

    def backward(self, step: int) -> tuple[float, int]:
        """Add one update's gradient: its loss, and the tokens run here."""
        epoch, groups = self.order.groups(step)
        loss, tokens = 0.0, 0
        for number, rows in enumerate(groups):
            share = len(rows) / self.order.update
            seed = (self.wish.recipe.seed, step, number)
            value, count = backward(self.trainee, self.source.group(rows, epoch), share, seed)
            loss, tokens = loss + share * value, tokens + count
        return loss, tokens

    def first_text(self, step: int) -> str:
        """How the first query of an update begins."""
        epoch, groups = self.order.groups(step)
        return self.source.group(groups[0], epoch).queries[0][:80]

    def forecast(self) -> Forecast:
        """Steps, tokens and time after a short measurement."""
        return forecast(self.trainee, self.source, self.order, self.backward)


def finetune(wish: Wish) -> ModelCard:
    """Train, and hand back a model that `run` knows by name; a finished folder is found with --resume."""
    distributed.join()
    if distributed.rank():
        wish = replace(wish, show=Silent(), say=lambda _: None)
    try:
        name, folder = _named(wish)
        wish = replace(
            wish, report=tracked(wish.report_to if not distributed.rank() else (), folder, name, wish.report)
        )
        if (folder / catalog.CARD).exists() and wish.resume:
            wish.say(f"{folder} is finished: nothing to do")
            return _published(wish, folder)
        _need_empty(folder, wish.resume)
        course = enrol(wish)
        return _graduate(course, _learn(course, _steps(course)))
    finally:
        distributed.leave()


def enrol(wish: Wish, plan_only: bool = False) -> Course:
    """Open data and weights, go through the first stage where there is one, find the negatives."""
    name, folder = _named(wish)
    save_model.need_name(name, folder)
    card = catalog.model(wish.model)
    if card.kind == "lexical":
        raise UsageError(f"{card.name} has no weights to train", "name a backbone (retbench list models)")
    _need_trainable(wish.recipe)
    if wish.export:
        sentence_transformers_export.prefixes_of(wish.recipe.method)
    training = None if wish.recipe.objective == "llm2ir" else data_module.labelled(wish)
    local = weights.obtain(card, say=wish.say)
    need_memory(local.folder, wish.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    origin = Origin(card, local.folder, local.fingerprint)
    if training and wish.recipe.objective == "llm-ql" and wish.recipe.likelihood and not plan_only:
        start = first_stage(wish, wish.recipe.likelihood, name, folder, origin, training)
        origin = replace(origin, folder=start)
    trainee = _trainee(origin.folder, wish.recipe)
    if training is None:
        source, data = _cropped(wish, trainee)
    else:
        training = taught(_with_negatives(training, trainee, wish, folder), wish)
        source = _source(training, trainee, wish.recipe)
        data = {"set": training.name, "fingerprint": training.fingerprint, "pairs": len(source), **training.facts}
    if (least := min(len(source), wish.recipe.batch.contrast)) < distributed.world():
        raise UsageError(f"{least} queries a contrast for {distributed.world()} processes", "start fewer processes")
    return Course(wish, name, folder, origin, trainee, source, data)


def _named(wish: Wish) -> tuple[str, Path]:
    recipe, parent = wish.recipe, catalog.model(wish.model).name
    dataset = Path(wish.dataset).name.split(".jsonl")[0]
    seed = "" if recipe.seed == 1 else f"-seed{recipe.seed}"
    name = wish.name or (wish.out.name if wish.out else f"{parent}-{dataset}-{recipe.name}{seed}")
    return name.lower(), save_model.place(name.lower(), wish.out)


def _need_empty(folder: Path, resume: bool) -> None:
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UsageError(f"{folder} is not empty", "add --resume to go on there, or give another --out or --name")


def _need_trainable(recipe: Recipe) -> None:
    method = recipe.method
    if method.kind != "dense" or method.layer is not None or method.attention != "own":
        raise UsageError(
            f"method {method.name} cannot be trained: it is not the last layer's, by the model's own attention",
            "use a dense method without layer and attention",
        )


def _trainee(folder: Path, recipe: Recipe) -> Trainee:
    wording = Wording(backbone.tokenizer(folder), recipe.method, recipe.method.instruction)
    model = lora.prepare(lora.load(folder, recipe).to(device()), recipe)
    if recipe.sharding == "fsdp":
        model = fsdp.shard(model)
    return Trainee(model, wording, recipe, backbone.is_causal(folder), device())


def _source(training: TrainingSet, trainee: Trainee, recipe: Recipe) -> Source:
    """Pairs, or lists of which each is ranked."""
    if recipe.lists is None:
        return Labelled(training, recipe.contrast, recipe.seed)
    return Ranked(training, recipe.lists, trainee.sheet, recipe.lengths.document, recipe.seed)


def _cropped(wish: Wish, trainee: Trainee) -> tuple[Source, dict[str, Any]]:
    recipe = wish.recipe
    if recipe.crops is None:
        raise UsageError("objective llm2ir without [crops]", "add a [crops] table to the recipe")
    name, fingerprint, texts = data_module.unlabelled(wish)
    source = Cropped.of(texts, trainee.wording.tokenizer, recipe.crops, recipe.contrast, recipe.seed)
    wish.say(f"{name}: {len(source):,} of {len(texts):,} texts are long enough to be cropped; no labels are used")
    return source, {"set": name, "fingerprint": fingerprint, "texts": len(source), "labels": False}


def _with_negatives(training: TrainingSet, trainee: Trainee, wish: Wish, folder: Path) -> TrainingSet:
    """Given, read from a mined file, or mined now and kept beside the checkpoint."""
    settings, own = wish.recipe.mining, folder / NEGATIVES
    if settings.file or own.exists():
        return hard_negatives.read(training, Path(settings.file).expanduser() if settings.file else own)
    if settings.source == "given" or not wish.recipe.contrast.negatives:
        return training
    with Meter(wish.show).phase(f"mine negatives by {settings.source}", "texts") as advance:
        if settings.source == "bm25":
            made = hard_negatives.mined(training, settings, hard_negatives.by_words(training), "bm25")
        else:
            lengths = (wish.recipe.lengths.query, wish.recipe.lengths.document)
            made = hard_negatives.mined(
                training,
                settings,
                lambda q, k: in_training_search.rank(trainee, q, training.passages, k, lengths, advance),
                wish.model,
            )
    if distributed.rank() == 0:
        hard_negatives.write(made, own)
    return made


def _steps(course: Course) -> int:
    """Fixed at the first start."""
    recipe = course.wish.recipe
    facts: dict[str, Any] = {"recipe": asdict(recipe), "parent": course.origin.fingerprint, "data": course.data}
    facts["examined"] = course.wish.examined

    def count() -> int:
        return course.forecast().steps if recipe.max_minutes else planned_steps(course.order, recipe)

    return step_plan.steps_of(course.folder, facts, count)


def _learn(course: Course, steps: int) -> Run:
    wish, recipe = course.wish, course.wish.recipe
    moving = lora.trained(course.trainee.model)
    schedule = Schedule(steps, recipe.optimiser, recipe.save_steps, recipe.eval_steps)
    run = Run(course.trainee.model, moving, schedule, course.backward, course.folder, course.first_text,
              wish.report, _examiner(course))  # fmt: skip
    run.resume()
    moved = sum(weight.numel() for weight in moving.values())
    wish.say(f"training {moved:,} weights in {steps:,} steps, from step {run.progress.step}")
    run.run()
    checkpoint.take_best(course.folder, moving)
    return run


def _examiner(course: Course) -> Callable[[], float] | None:
    if not course.wish.examined:
        return None
    card, size = data_module.examination(course.wish.examined)
    own = course.origin.card
    limit = own.max_length or own.context_length
    return Examiner(course.trainee, card, open_collection(card, size), limit, course.wish.show)


def _graduate(course: Course, run: Run) -> ModelCard:
    facts = {
        "data": course.data,
        "run": {**asdict(run.progress), "steps": run.schedule.steps,
                "examined": course.wish.examined, "seed": course.wish.recipe.seed,
                "processes": distributed.world(), "device": str(course.trainee.device)},
        "command": course.wish.command,
    }  # fmt: skip
    state = fsdp.state(course.trainee.model)
    if distributed.rank() == 0:
        save_model.write(course.folder, course.name, course.trainee, course.origin, facts, state)
    distributed.wait()
    return _published(course.wish, course.folder)


def _published(wish: Wish, folder: Path) -> ModelCard:
    """Known by name, and exported where that is wished; a run that was killed behind its card catches up on both."""
    made = catalog.model(str(folder.resolve()))
    if distributed.rank() == 0:
        save_model.register(made, folder)
        if wish.export and not (folder / wish.export).exists():
            local = weights.obtain(made, say=wish.say)
            wording = Wording(backbone.tokenizer(local.folder), wish.recipe.method, wish.recipe.method.instruction)
            width = model_folders.shape(local.folder)["width"]
            sentence_transformers_export.sentence_transformers(local.folder, wording, width, folder / wish.export)
    distributed.wait()
    return made


def plan_only(wish: Wish) -> dict[str, Any]:
    """What a training would do, after a short measurement; nothing is kept."""
    name, _ = _named(wish)
    with TemporaryDirectory() as scratch:
        course = enrol(replace(wish, name=name, out=Path(scratch) / "plan"), plan_only=True)
        measured = course.forecast()
    group = course.source.group(course.order.groups(0)[1][0], 0)
    tokens = course.trainee.tokens(group.queries[:1], group.passages[:1])
    spoken = course.trainee.wording.tokenizer
    return {
        "model": course.name,
        "recipe": wish.recipe.name,
        "queries": measured.queries,
        "steps": measured.steps,
        "steps_of_an_epoch": measured.epoch_steps,
        "tokens": round(measured.steps * measured.tokens_per_step),
        "tokens_per_second": round(measured.tokens_per_second),
        "minutes": round(measured.seconds / 60, 1),
        "memory_mb": round(measured.memory_mb),
        "disk_bytes": sum(file.stat().st_size for file in course.origin.folder.glob("*.safetensors")),
        "data": course.data,
        "first_query": spoken.decode(tokens[0].tolist()),
        "first_passage": spoken.decode(tokens[1].tolist()),
    }


def summary(card: ModelCard) -> dict[str, Any]:
    """The new model in a few facts."""
    if card.training is None or card.weights is None:
        raise DataError(f"{card.name} was not trained here", "name a folder that `finetune` wrote")
    run = card.training.run
    facts: dict[str, Any] = {
        "model": card.name,
        "folder": card.weights.path,
        "steps": run["steps"],
        "seconds": round(run["seconds"], 1),
    }
    facts |= {"tokens": run["tokens"], "data": card.training.data}
    return {**facts, "next": f"retbench run --model {card.name} --task {card.training.data['set']}"}
