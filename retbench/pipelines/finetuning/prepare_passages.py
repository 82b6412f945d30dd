"""Which passages a query is trained with, and their scores: hard negatives, filters by a cross-encoder, the teacher."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import options
from retbench.cards.recipe import CROSS_ENCODER_TEACHER, Recipe
from retbench.cards.reranker_settings import CrossEncoderSettings, parse_reranker
from retbench.errors import UsageError
from retbench.pipelines.models.cross_encoder import resolve_cross_encoder
from retbench.records.phase_timer import PhaseTimer
from retbench.training import distributed, hard_negatives, in_training_search
from retbench.training.pair_scoring import PairScorer
from retbench.training.teachers import add_scores_from_cross_encoder, add_teacher_scores, calibrate_scores
from retbench.training.train_forward import TrainableEncoder
from retbench.training.training_data import TrainingRequest, find_task_of_dataset
from retbench.training.training_set import TrainingSet

NEGATIVES_FILE = "negatives.jsonl"
MEASURED_SECONDS = 4.0
MEASURED_QUERIES, PASSAGES_PER_QUERY = 4, 8  # of one measured batch


def add_hard_negatives(
    training_set: TrainingSet, encoder: TrainableEncoder, request: TrainingRequest, folder: Path
) -> TrainingSet:
    """Hard negatives from the data, from a mined file, or mined and filtered now and written beside the checkpoints."""
    recipe, mined_file = encoder.recipe, folder / NEGATIVES_FILE
    settings = recipe.mining
    if settings.file:
        return hard_negatives.read_hard_negatives(training_set, Path(settings.file).expanduser())
    if mined_file.exists():
        return hard_negatives.read_hard_negatives(training_set, mined_file, settings)
    if not needs_mining(recipe) and not needs_filter(recipe):
        return training_set
    if needs_mining(recipe):
        training_set = _mine(training_set, encoder, request)
    if settings.cross_encoder and needs_filter(recipe):
        training_set = _filter(training_set, recipe, request, settings.cross_encoder)
    if distributed.get_rank() == 0:
        hard_negatives.write_hard_negatives(training_set, mined_file, settings)
    return training_set


def needs_mining(recipe: Recipe) -> bool:
    """Whether hard negatives are searched before the first step."""
    settings = recipe.mining
    is_mined = settings.source != "given" and not settings.file
    return is_mined and recipe.contrastive.hard_negatives > 0 and recipe.objective != "llm2ir"


def needs_filter(recipe: Recipe) -> bool:
    """Whether a cross-encoder scores candidates before the first step."""
    return bool(recipe.mining.cross_encoder) and not recipe.mining.file and recipe.contrastive.hard_negatives > 0


def _mine(training_set: TrainingSet, encoder: TrainableEncoder, request: TrainingRequest) -> TrainingSet:
    recipe = encoder.recipe
    settings = recipe.mining
    with PhaseTimer(request.progress).time_phase(f"mine negatives by {settings.source}", "texts") as advance:
        if settings.source == "bm25":
            ranker, miner = hard_negatives.build_bm25_ranker(training_set), "bm25"
        else:
            lengths, miner = (recipe.lengths.query, recipe.lengths.document), request.model
            ranker = in_training_search.build_ranker(encoder, training_set.passages, lengths, advance)
        return hard_negatives.mine_hard_negatives(training_set, settings, ranker, miner, needs_filter(recipe))


def _filter(training_set: TrainingSet, recipe: Recipe, request: TrainingRequest, name: str) -> TrainingSet:
    scorer = build_pair_scorer(name, request)
    with PhaseTimer(request.progress).time_phase(f"score candidates by {scorer.model}", "pairs") as advance:
        filtered = hard_negatives.filter_negatives(training_set, recipe.mining, scorer, advance)
    facts = filtered.facts["negatives"]["filter"]
    request.log_status(
        f"{scorer.model}: kept {facts['kept']:,} of {facts['candidates']:,} candidates as hard negatives; "
        f"{facts['queries_without_negatives']:,} queries have none"
    )
    return filtered


def check_cross_encoders(request: TrainingRequest, recipe: Recipe) -> None:
    """Raise an error for a cross-encoder that is not here, before anything is loaded or mined."""
    for name in list_cross_encoders(recipe):
        build_pair_scorer(name, request)


def list_cross_encoders(recipe: Recipe) -> list[str]:
    """The cross-encoders of a recipe as it spells them: the filter's, then the teacher's."""
    names = [str(recipe.mining.cross_encoder)] if needs_filter(recipe) else []
    return names + ([recipe.teacher] if recipe.teacher.startswith(CROSS_ENCODER_TEACHER) else [])


def add_teacher(training_set: TrainingSet, recipe: Recipe, request: TrainingRequest) -> TrainingSet:
    """The set with the calibrated scores of the recipe's teacher."""
    if not recipe.teacher.startswith(CROSS_ENCODER_TEACHER):
        return add_teacher_scores(training_set, recipe, request.log_status)
    scorer = build_pair_scorer(recipe.teacher, request)
    with PhaseTimer(request.progress).time_phase(f"teacher scores by {scorer.model}", "pairs") as advance:
        scored = add_scores_from_cross_encoder(training_set, scorer, advance)
    return calibrate_scores(scored, recipe.teacher_scores)


def build_pair_scorer(spelling: str, request: TrainingRequest) -> PairScorer:
    """The cross-encoder of a recipe: a model, or `cross:model=NAME` with options as in `--rerank`."""
    settings = _parse_settings(spelling)
    task = find_task_of_dataset(request.dataset)
    resolved = resolve_cross_encoder(settings, task.instruction if task else None, request.log_status)
    return PairScorer(resolved.card.name, resolved.describe(), resolved.load, resolved.compute_token_budget())


def _parse_settings(spelling: str) -> CrossEncoderSettings:
    if not spelling.startswith(CROSS_ENCODER_TEACHER):
        return CrossEncoderSettings(spelling)
    settings = parse_reranker(spelling).settings
    if not isinstance(settings, CrossEncoderSettings):
        raise TypeError(f"{spelling} is no cross-encoder")
    if "depth" in options.split_options(spelling)[1]:
        raise UsageError(f"{spelling}: depth belongs to --rerank", "leave it out; mining.rank_to limits the candidates")
    return settings


def estimate_scoring(training_set: TrainingSet, recipe: Recipe, request: TrainingRequest) -> list[dict[str, Any]]:
    """What the cross-encoders of a recipe will take: pairs, tokens and minutes, by a measurement of a few pairs.

    Random passages stand for the candidates. A teacher that also filters has its scores already.
    """
    mined = min(recipe.mining.rank_to, len(training_set.passages))
    positives = sum(len(query.positives) for query in training_set.queries)
    given = sum(len(query.negatives) for query in training_set.queries)
    candidates = mined * len(training_set.queries) if needs_mining(recipe) else given
    work: dict[str, int] = {}
    if needs_filter(recipe):
        work[str(recipe.mining.cross_encoder)] = positives + candidates
    if recipe.teacher.startswith(CROSS_ENCODER_TEACHER):
        kept = recipe.mining.negatives_per_query * len(training_set.queries)
        negatives = min(candidates, kept) if needs_mining(recipe) or needs_filter(recipe) else given
        work.setdefault(recipe.teacher, positives + negatives)
    return [_measure_scoring(build_pair_scorer(name, request), training_set, pairs) for name, pairs in work.items()]


def _measure_scoring(scorer: PairScorer, training_set: TrainingSet, pairs: int) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    scorer.measure_tokens(_draw_pairs(training_set, generator))  # the first pass loads the model
    started, measured, tokens = time.perf_counter(), 0, 0
    while (seconds := time.perf_counter() - started) < MEASURED_SECONDS or not measured:
        sample = _draw_pairs(training_set, generator)
        tokens += scorer.measure_tokens(sample)
        measured += sum(len(passages) for _, passages in sample)
    return {
        "model": scorer.model,
        "pairs": pairs,
        "tokens": round(pairs * tokens / measured),
        "minutes": round(pairs * seconds / measured / 60, 1),
    }


def _draw_pairs(training_set: TrainingSet, generator: np.random.Generator) -> list[tuple[str, list[str]]]:
    queries = generator.integers(len(training_set.queries), size=MEASURED_QUERIES)
    rows = generator.integers(len(training_set.passages), size=(MEASURED_QUERIES, PASSAGES_PER_QUERY))
    return [
        (training_set.queries[int(query)].text, [training_set.passages[int(row)] for row in passages])
        for query, passages in zip(queries, rows, strict=True)
    ]
