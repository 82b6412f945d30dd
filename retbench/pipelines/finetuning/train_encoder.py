"""Fine-tune a backbone: load the dataset, remove leaks, find hard negatives, train, write the model and its card.

The steps are called one after the other by `finetune_encoder`; the gradient and the loop are in `retbench.training`.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.published_kinds import require_encoder, require_fitting_method
from retbench.cards.recipe import Recipe
from retbench.corpora.open_collection import open_collection
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import model_folders, text_config, weights
from retbench.engines.device import get_device
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, UsageError
from retbench.pipelines.experiment_trackers import track_training
from retbench.pipelines.finetuning.prepare_passages import (
    add_hard_negatives,
    add_teacher,
    check_cross_encoders,
)
from retbench.records.phase_timer import NoProgress
from retbench.system.durable_files import create_writable_folder
from retbench.training import (
    checkpoint,
    distributed,
    fsdp,
    lora,
    save_model,
    sentence_transformers_export,
    step_plan,
    training_data,
)
from retbench.training.contrastive_batches import BatchSource, LabelledBatchSource
from retbench.training.contrastive_objective import ContrastiveObjective
from retbench.training.cost_estimate import check_memory, count_steps, estimate_training
from retbench.training.evaluator import TrainingEvaluator
from retbench.training.finished_training import require_same_training
from retbench.training.listwise_batches import ListwiseBatchSource, limit_queries_per_source
from retbench.training.llm_ql_pretraining import pretrain_query_likelihood
from retbench.training.random_crops import CropBatchSource
from retbench.training.save_model import ParentWeights
from retbench.training.train_forward import TrainableEncoder
from retbench.training.train_loop import TrainLoop, TrainSchedule, describe_zero_rates
from retbench.training.training_data import TrainingRequest, UnlabelledTexts
from retbench.training.training_set import TrainingSet


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training needs before its first step; `data` describes the dataset on the plan and the card."""

    request: TrainingRequest
    recipe: Recipe
    name: str
    folder: Path
    parent: ParentWeights
    objective: ContrastiveObjective
    data: dict[str, Any]

    @property
    def encoder(self) -> TrainableEncoder:
        """The model in training."""
        return self.objective.encoder


def finetune_encoder(request: TrainingRequest, recipe: Recipe) -> ModelCard:
    """Train a model and register it by name; with --resume a finished folder is used as it is."""
    distributed.join_processes()
    if distributed.get_rank():
        request = replace(request, progress=NoProgress(), log_status=lambda _: None)
    recipe = use_task_instruction(request, recipe)
    try:
        name, folder = choose_name_and_folder(request, recipe)
        if (folder / catalog.CARD_FILE).exists() and request.resume:
            card = catalog.find_model_card(str(folder.resolve()))
            model_folders.check_trained_model(card, folder)
            require_same_training(card, folder, request, recipe)
            request.log_status(f"{folder} is finished: nothing to do")
            return _register_and_export(request, recipe, card, folder)
        _check_folder_is_empty(folder, request.resume)
        trackers = request.report_to if not distributed.get_rank() else ()
        settings = {"model": request.model, "dataset": request.dataset, "split": request.split, **asdict(recipe)}
        with track_training(trackers, folder, name, settings, request.log_metrics) as log_metrics:
            job = prepare_training(replace(request, log_metrics=log_metrics), recipe)
            return save_and_register(job, run_training(job, plan_steps(job)))
    finally:
        distributed.leave_processes()


def use_task_instruction(request: TrainingRequest, recipe: Recipe) -> Recipe:
    """The recipe with the instruction that an evaluation on the dataset's task uses too."""
    if not recipe.method.uses_instruction:
        return recipe
    instruction = recipe.method.choose_instruction(training_data.find_task_of_dataset(request.dataset))
    return replace(recipe, method=replace(recipe.method, instruction=instruction))


def prepare_training(request: TrainingRequest, recipe: Recipe) -> TrainingJob:
    """Check the request, load data and weights, run stage 1 of llm-ql where the recipe has one, find negatives."""
    name, folder = choose_name_and_folder(request, recipe)
    card = check_request(request, recipe, name, folder)
    dataset = load_dataset(request, recipe)
    parent = load_parent(request, recipe, card)
    create_writable_folder(folder)
    if isinstance(dataset, TrainingSet) and recipe.objective == "llm-ql" and recipe.query_likelihood:
        start = pretrain_query_likelihood(request, recipe, name, folder, parent, dataset)
        parent = replace(parent, folder=start)
    encoder = load_encoder(parent.folder, recipe)
    if isinstance(dataset, UnlabelledTexts):
        source, data = build_crop_source(dataset, encoder, request)
    else:
        training_set = add_hard_negatives(dataset, encoder, request, folder)
        training_set = add_teacher(training_set, recipe, request)
        if recipe.listwise:
            limit = recipe.listwise.max_queries_per_source
            training_set = limit_queries_per_source(training_set, limit, recipe.seed)
        source = build_labelled_source(training_set, encoder)
        data = training_set.describe(len(source))
    _check_process_count(min(len(source), recipe.batch.contrastive_batch_size))
    return TrainingJob(request, recipe, name, folder, parent, ContrastiveObjective(encoder, source), data)


def check_request(request: TrainingRequest, recipe: Recipe, name: str, folder: Path) -> ModelCard:
    """The card of the model to train; refuse a taken name and a model or method that cannot be trained."""
    save_model.check_name_is_free(name, folder)
    card = catalog.find_model_card(request.model)
    require_encoder(card)
    if card.kind == "lexical":
        raise UsageError(f"{card.name} has no weights to train", "name a backbone (retbench list models)")
    if card.adapted:
        raise UsageError(
            f"{card.name} is an adaptor on the vectors of {card.adapted.of}, which this training would leave out",
            f"train the backbone: --model {card.adapted.of}; then train an adaptor again",
        )
    method = recipe.method
    if method.kind != "dense" or method.layer is not None or method.attention != "own":
        raise UsageError(
            f"method {method.name} cannot be trained: training needs the last layer and the model's own attention",
            "use a dense method without layer and attention",
        )
    if method.pooling == "model":
        raise UsageError(
            f"method {method.name} cannot be trained: it has layers after the pooling",
            "use pooling = last, mean or first",
        )
    if request.export:
        sentence_transformers_export.get_prefixes(method)
    check_cross_encoders(request, recipe)
    return card


def load_dataset(request: TrainingRequest, recipe: Recipe) -> TrainingSet | UnlabelledTexts:
    """The labelled training set; for llm2ir, which trains without labels, the texts alone."""
    if recipe.objective == "llm2ir":
        return training_data.load_unlabelled_texts(request)
    return training_data.load_training_set(request, recipe.mining.negatives_per_query)


def load_parent(request: TrainingRequest, recipe: Recipe, card: ModelCard) -> ParentWeights:
    """The weights that training starts from, if they fit into memory."""
    local = weights.obtain_weights(card, on_message=request.log_status)
    require_fitting_method(local.published_folder, recipe.method)
    _check_matryoshka_dimensions(local.folder, recipe)
    check_memory(local.folder, recipe)
    return ParentWeights(card, local.folder, local.fingerprint)


def _check_matryoshka_dimensions(folder: Path, recipe: Recipe) -> None:
    """Refuse a width that the vectors do not have: it would be the full width, trained twice."""
    dimensions, width = recipe.contrastive.matryoshka_dimensions, model_folders.read_shape(folder)["width"]
    if too_wide := [value for value in dimensions if value >= width]:
        raise UsageError(
            f"contrastive.matryoshka_dimensions: {too_wide[0]} is not shorter than the vectors, which have {width}",
            f"write widths below {width}; the full width is always trained",
        )


def load_encoder(folder: Path, recipe: Recipe) -> TrainableEncoder:
    """The model in memory, with adapters where the recipe has them, sharded where it asks for that."""
    prompt_tokenizer = PromptTokenizer(load_tokenizer(folder), recipe.method, recipe.method.instruction)
    model = lora.prepare_for_training(lora.load_model(folder, recipe), recipe)
    is_sharded, device = recipe.sharding == "fsdp", get_device()
    model = fsdp.shard_model(model, device, recipe.dtype) if is_sharded else model.to(device)
    return TrainableEncoder(model, prompt_tokenizer, recipe, text_config.is_causal(folder), get_device())


def build_labelled_source(training_set: TrainingSet, encoder: TrainableEncoder) -> BatchSource:
    """Batches of labelled pairs, or of ranked lists for e2rank."""
    recipe = encoder.recipe
    if recipe.listwise is None:
        return LabelledBatchSource(training_set, recipe.contrastive, recipe.seed)
    return ListwiseBatchSource(training_set, recipe.listwise, encoder.listwise_prompt, recipe.seed)


def build_crop_source(
    corpus: UnlabelledTexts, encoder: TrainableEncoder, request: TrainingRequest
) -> tuple[BatchSource, dict[str, Any]]:
    """Batches of random crops for llm2ir, and the description of their texts."""
    source = CropBatchSource.build(corpus.texts, encoder.prompt_tokenizer.tokenizer, encoder.recipe)
    request.log_status(
        f"{corpus.name}: {len(source):,} of {len(corpus.texts):,} texts are long enough for crops; labels are not used"
    )
    return source, {"set": corpus.name, "fingerprint": corpus.fingerprint, "texts": len(source), "labels": False}


def plan_steps(job: TrainingJob) -> int:
    """The number of steps, fixed when the training starts."""
    recipe, objective = job.recipe, job.objective
    facts: dict[str, Any] = {"recipe": asdict(recipe), "parent": job.parent.fingerprint, "data": job.data}
    facts["examined"] = job.request.eval_task

    def count() -> int:
        return estimate_training(objective).steps if recipe.max_minutes else count_steps(objective.sampler, recipe)

    return step_plan.load_or_create_plan(job.folder, facts, count)


def run_training(job: TrainingJob, steps: int) -> TrainLoop:
    """Run the train loop from the last checkpoint; the model then has the best or the last weights."""
    recipe, trainable = job.recipe, lora.get_trainable_weights(job.encoder.model)
    schedule = TrainSchedule(steps, recipe.optimizer, recipe.save_steps, recipe.eval_steps)
    evaluator = build_evaluator(job)
    loop = TrainLoop(
        job.encoder.model, trainable, schedule, job.objective, job.folder, job.request.log_metrics, evaluator
    )
    loop.resume()
    if warning := describe_zero_rates(recipe.optimizer, steps):
        job.request.log_status(warning)
    count = sum(weight.numel() for weight in trainable.values())
    job.request.log_status(f"training {count:,} weights in {steps:,} steps, from step {loop.progress.step}")
    loop.run()
    checkpoint.restore_best_weights(job.folder, trainable, loop.progress)
    return loop


def build_evaluator(job: TrainingJob) -> TrainingEvaluator | None:
    """What scores the weights during training; its prompts have the instruction of the evaluated task."""
    if not job.request.eval_task:
        return None
    task, sample = training_data.parse_eval_task(job.request.eval_task)
    parent = job.parent.card
    max_length = parent.max_length or parent.context_length
    prompt_tokenizer = replace(job.encoder.prompt_tokenizer, instruction=job.recipe.method.choose_instruction(task))
    encoder = replace(job.encoder, prompt_tokenizer=prompt_tokenizer)
    return TrainingEvaluator(encoder, task, open_collection(task, sample), max_length, job.request.progress)


def save_and_register(job: TrainingJob, loop: TrainLoop) -> ModelCard:
    """Write the model folder and its card, and register the model by name."""
    facts = {
        "data": job.data,
        "run": {**asdict(loop.progress), "steps": loop.schedule.steps,
                "examined": job.request.eval_task, "seed": job.recipe.seed,
                "processes": distributed.get_world_size(), "device": str(job.encoder.device)},
        "command": job.request.command,
    }  # fmt: skip
    state = fsdp.gather_state(job.encoder.model)
    if distributed.get_rank() == 0:
        save_model.save_model(job.folder, job.name, job.encoder, job.parent, facts, state)
    distributed.wait_for_all()
    card = catalog.find_model_card(str(job.folder.resolve()))
    return _register_and_export(job.request, job.recipe, card, job.folder)


def _register_and_export(request: TrainingRequest, recipe: Recipe, card: ModelCard, folder: Path) -> ModelCard:
    """Register the model and export it if asked; a training that was killed after its card was written does both."""
    if distributed.get_rank() == 0:
        save_model.remove_checkpoints(folder)
        save_model.register_model(card, folder)
        if request.export and not (folder / request.export).exists():
            local = weights.obtain_weights(card, on_message=request.log_status)
            tokenizer = PromptTokenizer(load_tokenizer(local.folder), recipe.method, recipe.method.instruction)
            width = model_folders.read_shape(local.folder)["width"]
            sentence_transformers_export.export_sentence_transformers(
                local.folder, tokenizer, width, folder / request.export
            )
    distributed.wait_for_all()
    return card


def choose_name_and_folder(request: TrainingRequest, recipe: Recipe) -> tuple[str, Path]:
    """The name of the new model and its folder, by default from the parent, the dataset and the recipe."""
    parent, dataset = catalog.find_model_card(request.model).name, Path(request.dataset).name.split(".jsonl")[0]
    seed = "" if recipe.seed == 1 else f"-seed{recipe.seed}"
    default = request.out.name if request.out else f"{parent}-{dataset}-{recipe.name}{seed}"
    name = (request.name or default).lower()
    return name, save_model.choose_output_folder(name, request.out)


def _check_folder_is_empty(folder: Path, resume: bool) -> None:
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UsageError(f"{folder} is not empty", "add --resume to go on there, or give another --out or --name")


def _check_process_count(queries_per_batch: int) -> None:
    if queries_per_batch < (processes := distributed.get_world_size()):
        raise UsageError(
            f"a batch of {queries_per_batch} queries is too small for {processes} processes", "start fewer processes"
        )


def summarize_training(card: ModelCard) -> dict[str, Any]:
    """The new model in a few facts."""
    if card.training is None or card.weights is None:
        raise DataError(f"{card.name} was not trained by retbench", "name a folder that `finetune` wrote")
    run = card.training.run
    return {
        "model": card.name,
        "folder": card.weights.path,
        "steps": run["steps"],
        "seconds": round(run["seconds"], 1),
        "tokens": run["tokens"],
        "data": card.training.data,
    }
