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
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone, model_folders, weights
from retbench.engines.device import get_device
from retbench.errors import DataError, UsageError
from retbench.pipelines.teaching import add_teacher_scores
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
    training_data,
)
from retbench.training.contrastive_batches import BatchSampler, BatchSource, LabelledBatchSource
from retbench.training.cost_estimate import TrainingEstimate, check_memory, count_steps, estimate_training
from retbench.training.evaluator import TrainingEvaluator
from retbench.training.experiment_trackers import add_trackers
from retbench.training.gradient_caching import backward_batch
from retbench.training.listwise_batches import ListwiseBatchSource
from retbench.training.llm_ql_pretraining import pretrain_query_likelihood
from retbench.training.random_crops import CropBatchSource
from retbench.training.save_model import ParentWeights
from retbench.training.train_forward import TrainableEncoder
from retbench.training.train_loop import TrainLoop, TrainSchedule
from retbench.training.training_data import TrainingRequest
from retbench.training.training_set import TrainingSet

NEGATIVES_FILE = "negatives.jsonl"


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training needs, before its first step."""

    wish: TrainingRequest
    name: str
    folder: Path
    origin: ParentWeights
    trainee: TrainableEncoder
    source: BatchSource
    data: dict[str, Any]

    @property
    def order(self) -> BatchSampler:
        """Which queries each step takes."""
        return BatchSampler(len(self.source), self.wish.recipe.batch, self.wish.recipe.seed)

    def backward(self, step: int) -> tuple[float, int]:
        """Add one update's gradient: its loss, and the tokens run here."""
        epoch, groups = self.order.sample_rows(step)
        loss, tokens = 0.0, 0
        for number, rows in enumerate(groups):
            share = len(rows) / self.order.queries_per_step
            seed = (self.wish.recipe.seed, step, number)
            value, count = backward_batch(self.trainee, self.source.build_batch(rows, epoch), share, seed)
            loss, tokens = loss + share * value, tokens + count
        return loss, tokens

    def first_text(self, step: int) -> str:
        """How the first query of an update begins."""
        epoch, groups = self.order.sample_rows(step)
        return self.source.build_batch(groups[0], epoch).queries[0][:80]

    def forecast(self) -> TrainingEstimate:
        """Steps, tokens and time after a short measurement."""
        return estimate_training(self.trainee, self.source, self.order, self.backward)


def finetune(wish: TrainingRequest) -> ModelCard:
    """Train, and hand back a model that `run` knows by name; a finished folder is found with --resume."""
    distributed.join_processes()
    if distributed.get_rank():
        wish = replace(wish, show=Silent(), say=lambda _: None)
    try:
        name, folder = _named(wish)
        wish = replace(
            wish, report=add_trackers(wish.report_to if not distributed.get_rank() else (), folder, name, wish.report)
        )
        if (folder / catalog.CARD_FILE).exists() and wish.resume:
            wish.say(f"{folder} is finished: nothing to do")
            return _published(wish, folder)
        _need_empty(folder, wish.resume)
        course = prepare_training(wish)
        return save_and_register(course, _learn(course, _steps(course)))
    finally:
        distributed.leave_processes()


def prepare_training(wish: TrainingRequest, plan_only: bool = False) -> TrainingJob:
    """Open data and weights, go through the first stage where there is one, find the negatives."""
    name, folder = _named(wish)
    save_model.check_name_is_free(name, folder)
    card = catalog.find_model_card(wish.model)
    if card.kind == "lexical":
        raise UsageError(f"{card.name} has no weights to train", "name a backbone (retbench list models)")
    _need_trainable(wish.recipe)
    if wish.export:
        sentence_transformers_export.get_prefixes(wish.recipe.method)
    training = None if wish.recipe.objective == "llm2ir" else training_data.load_training_set(wish)
    local = weights.obtain_weights(card, on_message=wish.say)
    check_memory(local.folder, wish.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    origin = ParentWeights(card, local.folder, local.fingerprint)
    if training and wish.recipe.objective == "llm-ql" and wish.recipe.query_likelihood and not plan_only:
        start = pretrain_query_likelihood(wish, wish.recipe.query_likelihood, name, folder, origin, training)
        origin = replace(origin, folder=start)
    trainee = _trainee(origin.folder, wish.recipe)
    if training is None:
        source, data = _cropped(wish, trainee)
    else:
        training = add_teacher_scores(_with_negatives(training, trainee, wish, folder), wish)
        source = _source(training, trainee, wish.recipe)
        data = {"set": training.name, "fingerprint": training.fingerprint, "pairs": len(source), **training.facts}
    if (least := min(len(source), wish.recipe.batch.contrastive_batch_size)) < distributed.get_world_size():
        raise UsageError(
            f"{least} queries a contrast for {distributed.get_world_size()} processes", "start fewer processes"
        )
    return TrainingJob(wish, name, folder, origin, trainee, source, data)


def _named(wish: TrainingRequest) -> tuple[str, Path]:
    recipe, parent = wish.recipe, catalog.find_model_card(wish.model).name
    dataset = Path(wish.dataset).name.split(".jsonl")[0]
    seed = "" if recipe.seed == 1 else f"-seed{recipe.seed}"
    name = wish.name or (wish.out.name if wish.out else f"{parent}-{dataset}-{recipe.name}{seed}")
    return name.lower(), save_model.choose_output_folder(name.lower(), wish.out)


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


def _trainee(folder: Path, recipe: Recipe) -> TrainableEncoder:
    wording = PromptTokenizer(backbone.tokenizer(folder), recipe.method, recipe.method.instruction)
    model = lora.prepare_for_training(lora.load_model(folder, recipe).to(get_device()), recipe)
    if recipe.sharding == "fsdp":
        model = fsdp.shard_model(model)
    return TrainableEncoder(model, wording, recipe, backbone.is_causal(folder), get_device())


def _source(training: TrainingSet, trainee: TrainableEncoder, recipe: Recipe) -> BatchSource:
    """Pairs, or lists of which each is ranked."""
    if recipe.listwise is None:
        return LabelledBatchSource(training, recipe.contrastive, recipe.seed)
    return ListwiseBatchSource(training, recipe.listwise, trainee.listwise_prompt, recipe.lengths.document, recipe.seed)


def _cropped(wish: TrainingRequest, trainee: TrainableEncoder) -> tuple[BatchSource, dict[str, Any]]:
    recipe = wish.recipe
    if recipe.crops is None:
        raise UsageError("objective llm2ir without [crops]", "add a [crops] table to the recipe")
    name, fingerprint, texts = training_data.load_unlabelled_texts(wish)
    source = CropBatchSource.build(
        texts, trainee.prompt_tokenizer.tokenizer, recipe.crops, recipe.contrastive, recipe.seed
    )
    wish.say(f"{name}: {len(source):,} of {len(texts):,} texts are long enough to be cropped; no labels are used")
    return source, {"set": name, "fingerprint": fingerprint, "texts": len(source), "labels": False}


def _with_negatives(
    training: TrainingSet, trainee: TrainableEncoder, wish: TrainingRequest, folder: Path
) -> TrainingSet:
    """Given, read from a mined file, or mined now and kept beside the checkpoint."""
    settings, own = wish.recipe.mining, folder / NEGATIVES_FILE
    if settings.file or own.exists():
        return hard_negatives.read_hard_negatives(training, Path(settings.file).expanduser() if settings.file else own)
    if settings.source == "given" or not wish.recipe.contrastive.hard_negatives:
        return training
    with Meter(wish.show).phase(f"mine negatives by {settings.source}", "texts") as advance:
        if settings.source == "bm25":
            made = hard_negatives.mine_hard_negatives(
                training, settings, hard_negatives.build_bm25_ranker(training), "bm25"
            )
        else:
            lengths = (wish.recipe.lengths.query, wish.recipe.lengths.document)
            made = hard_negatives.mine_hard_negatives(
                training,
                settings,
                lambda q, k: in_training_search.rank_passages(trainee, q, training.passages, k, lengths, advance),
                wish.model,
            )
    if distributed.get_rank() == 0:
        hard_negatives.write_hard_negatives(made, own)
    return made


def _steps(course: TrainingJob) -> int:
    """Fixed at the first start."""
    recipe = course.wish.recipe
    facts: dict[str, Any] = {"recipe": asdict(recipe), "parent": course.origin.fingerprint, "data": course.data}
    facts["examined"] = course.wish.eval_task

    def count() -> int:
        return course.forecast().steps if recipe.max_minutes else count_steps(course.order, recipe)

    return step_plan.load_or_create_plan(course.folder, facts, count)


def _learn(course: TrainingJob, steps: int) -> TrainLoop:
    wish, recipe = course.wish, course.wish.recipe
    moving = lora.get_trainable_weights(course.trainee.model)
    schedule = TrainSchedule(steps, recipe.optimizer, recipe.save_steps, recipe.eval_steps)
    run = TrainLoop(course.trainee.model, moving, schedule, course.backward, course.folder, course.first_text,
              wish.report, _examiner(course))  # fmt: skip
    run.resume()
    moved = sum(weight.numel() for weight in moving.values())
    wish.say(f"training {moved:,} weights in {steps:,} steps, from step {run.progress.step}")
    run.run()
    checkpoint.restore_best_weights(course.folder, moving)
    return run


def _examiner(course: TrainingJob) -> Callable[[], float] | None:
    if not course.wish.eval_task:
        return None
    card, size = training_data.parse_eval_task(course.wish.eval_task)
    own = course.origin.card
    limit = own.max_length or own.context_length
    return TrainingEvaluator(course.trainee, card, open_collection(card, size), limit, course.wish.show)


def save_and_register(course: TrainingJob, run: TrainLoop) -> ModelCard:
    facts = {
        "data": course.data,
        "run": {**asdict(run.progress), "steps": run.schedule.steps,
                "examined": course.wish.eval_task, "seed": course.wish.recipe.seed,
                "processes": distributed.get_world_size(), "device": str(course.trainee.device)},
        "command": course.wish.command,
    }  # fmt: skip
    state = fsdp.gather_state(course.trainee.model)
    if distributed.get_rank() == 0:
        save_model.save_model(course.folder, course.name, course.trainee, course.origin, facts, state)
    distributed.wait_for_all()
    return _published(course.wish, course.folder)


def _published(wish: TrainingRequest, folder: Path) -> ModelCard:
    """Known by name, and exported where that is wished; a run that was killed behind its card catches up on both."""
    made = catalog.find_model_card(str(folder.resolve()))
    if distributed.get_rank() == 0:
        save_model.register_model(made, folder)
        if wish.export and not (folder / wish.export).exists():
            local = weights.obtain_weights(made, on_message=wish.say)
            wording = PromptTokenizer(
                backbone.tokenizer(local.folder), wish.recipe.method, wish.recipe.method.instruction
            )
            width = model_folders.read_shape(local.folder)["width"]
            sentence_transformers_export.export_sentence_transformers(
                local.folder, wording, width, folder / wish.export
            )
    distributed.wait_for_all()
    return made


def estimate_training_plan(wish: TrainingRequest) -> dict[str, Any]:
    """What a training would do, after a short measurement; nothing is kept."""
    name, _ = _named(wish)
    with TemporaryDirectory() as scratch:
        course = prepare_training(replace(wish, name=name, out=Path(scratch) / "plan"), plan_only=True)
        measured = course.forecast()
    group = course.source.build_batch(course.order.sample_rows(0)[1][0], 0)
    tokens = course.trainee.tokenize(group.queries[:1], group.passages[:1])
    spoken = course.trainee.prompt_tokenizer.tokenizer
    return {
        "model": course.name,
        "recipe": wish.recipe.name,
        "queries": measured.queries,
        "steps": measured.steps,
        "steps_of_an_epoch": measured.steps_per_epoch,
        "tokens": round(measured.steps * measured.tokens_per_step),
        "tokens_per_second": round(measured.tokens_per_second),
        "minutes": round(measured.seconds / 60, 1),
        "memory_mb": round(measured.memory_mb),
        "disk_bytes": sum(file.stat().st_size for file in course.origin.folder.glob("*.safetensors")),
        "data": course.data,
        "first_query": spoken.decode(tokens[0].tolist()),
        "first_passage": spoken.decode(tokens[1].tolist()),
    }


def summarize_training(card: ModelCard) -> dict[str, Any]:
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
