"""`retbench finetune --dry-run`: what a training would do and take, from a sample of its data and a few small steps.

What takes as long as in the training is left out: nothing is mined, scored or pretrained, and random passages stand for
hard negatives. What a cross-encoder would score is measured with a few pairs. Nothing is written.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retbench.cards.recipe import Recipe
from retbench.engines.memory import get_peak_memory_mb, reset_peak_memory
from retbench.pipelines.finetuning import train_encoder
from retbench.pipelines.finetuning.prepare_passages import estimate_scoring, needs_mining
from retbench.training.contrastive_batches import BatchSampler, BatchSource
from retbench.training.contrastive_objective import ContrastiveObjective
from retbench.training.cost_estimate import (
    MEASURED_SECONDS,
    TrainingEstimate,
    limit_steps,
    measure_tokens_per_query,
    measure_tokens_per_second,
)
from retbench.training.listwise_batches import limit_queries_per_source
from retbench.training.teachers import GIVEN, JUDGMENTS, add_teacher_scores
from retbench.training.train_forward import TrainableEncoder
from retbench.training.training_data import TrainingRequest, UnlabelledTexts
from retbench.training.training_set import TrainingQuery, TrainingSet

MAX_SAMPLED = 1000  # queries or texts
MEASURED_TOKENS = 2000  # of one measured step; a step of a recipe may take minutes on a CPU


def estimate_plan(request: TrainingRequest, recipe: Recipe) -> dict[str, Any]:
    """Estimate steps, time and memory of a training, and show its first prompts."""
    recipe = train_encoder.use_task_instruction(request, recipe)
    name, folder = train_encoder.choose_name_and_folder(request, recipe)
    card = train_encoder.check_request(request, recipe, name, folder)
    dataset = train_encoder.load_dataset(request, recipe)
    parent = train_encoder.load_parent(request, recipe, card)
    encoder = train_encoder.load_encoder(parent.folder, recipe)
    source, queries, data = _build_sample(dataset, encoder, request)
    estimate = _estimate(ContrastiveObjective(encoder, source), queries)
    batch = source.build_batch(np.arange(min(2, len(source))), 0)
    scoring = estimate_scoring(dataset, recipe, request) if isinstance(dataset, TrainingSet) else []
    tokens, tokenizer = encoder.tokenize(batch.queries[:1], batch.passages[:1]), encoder.prompt_tokenizer
    return {
        "model": name,
        "recipe": recipe.name,
        "queries": estimate.queries,
        "steps": estimate.steps,
        "steps_of_an_epoch": estimate.steps_per_epoch,
        "tokens": round(estimate.steps * estimate.tokens_per_step),
        "tokens_per_second": round(estimate.tokens_per_second),
        "minutes": round(estimate.seconds / 60, 1),
        "memory_mb": round(estimate.memory_mb),
        "disk_bytes": sum(file.stat().st_size for file in parent.folder.glob("*.safetensors")),
        "data": data,
        **({"cross_encoders": scoring} if scoring else {}),
        "not_included": _list_omitted_work(recipe),
        "first_query": tokenizer.tokenizer.decode(tokens[0].tolist()),
        "first_passage": tokenizer.tokenizer.decode(tokens[1].tolist()),
    }


def _list_omitted_work(recipe: Recipe) -> list[str]:
    """List the work before the first step, whose time is not in the estimate."""
    omitted = {
        f"mining of hard negatives by {recipe.mining.source}": needs_mining(recipe),
        "indexing of the texts for hard negatives": recipe.objective == "llm2ir"
        and recipe.contrastive.hard_negatives > 0,
        "stage 1 of llm-ql": recipe.objective == "llm-ql" and recipe.query_likelihood is not None,
    }
    return [work for work, is_needed in omitted.items() if is_needed]


def _build_sample(
    dataset: TrainingSet | UnlabelledTexts, encoder: TrainableEncoder, request: TrainingRequest
) -> tuple[BatchSource, int, dict[str, Any]]:
    """Build batches of a sample; return them, the number of queries of the whole dataset, and its description."""
    recipe = encoder.recipe
    if isinstance(dataset, UnlabelledTexts):
        sample = _take_evenly(dataset.texts)
        source, data = train_encoder.build_crop_source(replace(dataset, texts=sample), encoder, request)
        queries = round(len(source) * len(dataset.texts) / len(sample))
        return source, queries, {**data, "texts": queries}
    if recipe.listwise:
        dataset = limit_queries_per_source(dataset, recipe.listwise.max_queries_per_source, recipe.seed)
    sampled_set = replace(dataset, queries=_take_evenly(dataset.queries))
    if needs_mining(recipe):
        sampled_set = replace(sampled_set, queries=_draw_random_negatives(sampled_set, recipe))
    if recipe.teacher in (GIVEN, JUDGMENTS):
        sampled_set = add_teacher_scores(sampled_set, recipe, request.log_status)
    else:
        sampled_set = replace(sampled_set, queries=[_add_equal_scores(query) for query in sampled_set.queries])
    source = train_encoder.build_labelled_source(sampled_set, encoder)
    return source, len(dataset.queries), dataset.describe(len(dataset.queries))


def _take_evenly(items: Sequence[Any]) -> list[Any]:
    rows = np.linspace(0, len(items) - 1, min(len(items), MAX_SAMPLED)).astype(int)
    return [items[row] for row in rows]


def _draw_random_negatives(training_set: TrainingSet, recipe: Recipe) -> list[TrainingQuery]:
    generator = np.random.default_rng(recipe.seed)
    count = recipe.contrastive.hard_negatives
    drawn = generator.integers(len(training_set.passages), size=(len(training_set.queries), count))
    return [
        replace(query, negatives=tuple(map(int, rows))) if not query.negatives else query
        for query, rows in zip(training_set.queries, drawn, strict=True)
    ]


def _add_equal_scores(query: TrainingQuery) -> TrainingQuery:
    return replace(query, scores=(0.0,) * (len(query.positives) + len(query.negatives)))


def _estimate(objective: ContrastiveObjective, queries: int) -> TrainingEstimate:
    """Measure a few steps of a small batch, whose tokens cost about what those of a whole batch cost."""
    recipe = objective.encoder.recipe
    sampler = BatchSampler(queries, recipe.batch, recipe.seed)
    tokens_per_query = measure_tokens_per_query(objective)
    size = max(2, min(recipe.batch.contrastive_batch_size, int(MEASURED_TOKENS / tokens_per_query)))
    reset_peak_memory()
    idle = get_peak_memory_mb()
    speed, size = _measure_speed(objective, size)
    factor = 1.0 if recipe.batch.gradient_caching else recipe.batch.contrastive_batch_size / size
    memory = idle + (get_peak_memory_mb() - idle) * factor
    tokens_per_step = tokens_per_query * sampler.queries_per_step
    steps = limit_steps(sampler, recipe, speed / tokens_per_step)
    return TrainingEstimate(queries, sampler.steps_per_epoch, steps, tokens_per_step, speed, memory)


def _measure_speed(objective: ContrastiveObjective, size: int) -> tuple[float, int]:
    """Return tokens per second and the queries of the measured batch: fewer if a step of `size` would take long."""
    started = time.perf_counter()
    tokens = _resize_batches(objective, 2).backward(0)[1]
    seconds = time.perf_counter() - started
    size = min(size, int(2 * MEASURED_SECONDS / seconds))  # the first two queries also warm up, so they take longer
    if size <= 2:
        return tokens / seconds, 2
    return measure_tokens_per_second(_resize_batches(objective, size)), size


def _resize_batches(objective: ContrastiveObjective, size: int) -> ContrastiveObjective:
    recipe = objective.encoder.recipe
    batch = replace(recipe.batch, contrastive_batch_size=size, train_batch_size=size)
    return ContrastiveObjective(replace(objective.encoder, recipe=replace(recipe, batch=batch)), objective.source)
