"""Teachers: the scores of a query's passages that distillation and listwise training follow.

The data may hold `scores`. This module adds three other sources: graded judgments, a cross-encoder that scores the
passages now, and the run of another system (such as a reranker), which also brings the passages that it scored. The
scores of any teacher can be calibrated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retbench.cards.recipe import Recipe
from retbench.cards.teacher_scores import TeacherScores
from retbench.errors import DataError, MissingError
from retbench.records.load_run import read_scored_trec_run, read_trec_run
from retbench.records.phase_timer import AdvanceProgress
from retbench.records.results_folder import RECORD_FILE, decode_id
from retbench.records.scored_run import read_raw_scores
from retbench.training.pair_scoring import PairScorer, to_probabilities
from retbench.training.training_set import TrainingQuery, TrainingSet

JUDGMENTS, GIVEN = "judgments", "given"

ScoredRanking = Mapping[str, Sequence[tuple[str, float]]]  # query id to documents with their scores


def add_teacher_scores(training_set: TrainingSet, recipe: Recipe, log_status: Callable[[str], None]) -> TrainingSet:
    """The set with the calibrated scores of the recipe's teacher: the data's own, judgments, or a run."""
    return calibrate_scores(_find_teacher_scores(training_set, recipe, log_status), recipe.teacher_scores)


def _find_teacher_scores(training_set: TrainingSet, recipe: Recipe, log_status: Callable[[str], None]) -> TrainingSet:
    if recipe.teacher == GIVEN:
        return training_set
    if recipe.teacher == JUDGMENTS:
        return add_scores_from_judgments(training_set)
    run = Path(recipe.teacher).expanduser()
    scored_set = add_scores_from_run(
        training_set, _read_scored_ranking(run), run.name, recipe.mining.negatives_per_query
    )
    dropped = scored_set.facts["teacher"]["queries_without_teacher"]
    log_status(
        f"teacher {run.name}: scores for {len(scored_set.queries):,} queries; "
        f"left out {dropped:,} queries whose positives it does not rank"
    )
    return scored_set


def calibrate_scores(training_set: TrainingSet, settings: TeacherScores) -> TrainingSet:
    """The set with its scores on another scale, divided by the temperature."""
    if settings == TeacherScores():
        return training_set
    queries = [
        replace(query, scores=_calibrate(query.scores, settings)) if query.scores else query
        for query in training_set.queries
    ]
    return training_set.with_queries(queries)


def _calibrate(scores: tuple[float, ...], settings: TeacherScores) -> tuple[float, ...]:
    scaled = np.array(scores, dtype=float)
    if settings.scale == "minmax":
        spread = float(np.ptp(scaled))
        scaled = (scaled - scaled.min()) / spread if spread else np.zeros_like(scaled)
    elif settings.scale == "probability":
        scaled = to_probabilities(scaled)
    return tuple((scaled / settings.temperature).tolist())


def add_scores_from_cross_encoder(
    training_set: TrainingSet, scorer: PairScorer, advance: AdvanceProgress
) -> TrainingSet:
    """The scores (logits) that a cross-encoder gives to the passages of every query."""
    candidates = [(*query.positives, *query.negatives) for query in training_set.queries]
    scores = scorer.score_candidates(training_set, candidates, advance)
    queries = [
        replace(query, scores=tuple(row.tolist())) for query, row in zip(training_set.queries, scores, strict=True)
    ]
    facts = {"cross_encoder": scorer.model, "weights": scorer.settings["weights"]}
    return training_set.with_queries(queries, teacher=facts)


def add_scores_from_judgments(training_set: TrainingSet) -> TrainingSet:
    """The score of a passage is its grade; a passage without judgment has grade 0, as in nDCG."""
    if not any(query.grades for query in training_set.queries):
        raise DataError(f"{training_set.name} has no graded judgments", "name a task, or give `scores` in the data")
    queries = [replace(query, scores=_score_by_grade(query)) for query in training_set.queries]
    distinct = sorted({score for query in queries for score in query.scores or ()})
    return training_set.with_queries(queries, teacher={"source": JUDGMENTS, "grades": distinct})


def _score_by_grade(query: TrainingQuery) -> tuple[float, ...]:
    grades = dict(query.grades)
    return tuple(float(grades.get(row, 0)) for row in (*query.positives, *query.negatives))


def add_scores_from_run(
    training_set: TrainingSet, run: ScoredRanking, label: str, negatives_per_query: int
) -> TrainingSet:
    """Passages and scores of a run; a query whose positives the run does not rank is left out and counted."""
    if training_set.passage_ids is None:
        raise DataError(
            f"the passages of {training_set.name} have no ids, so a run cannot be the teacher",
            "give `scores` in the data instead",
        )
    rows = {identifier: row for row, identifier in enumerate(training_set.passage_ids)}
    ranked = [_list_ranked(training_set, query, run) for query in training_set.queries]
    queries = [
        scored_query
        for query, documents in zip(training_set.queries, ranked, strict=True)
        if (scored_query := _score_by_run(query, documents, rows, negatives_per_query, label))
    ]
    if not queries:
        raise DataError(
            f"{label} ranks no positive of any query of {training_set.name}",
            "make the run on the training split: retbench run --set split=train",
        )
    facts = {"run": label, "queries_without_teacher": len(training_set.queries) - len(queries)}
    return training_set.with_queries(queries, teacher=facts)


def _list_ranked(training_set: TrainingSet, query: TrainingQuery, run: ScoredRanking) -> list[tuple[str, float]]:
    """What the run ranks for a query, without the passages that the task never ranks for it."""
    unranked = training_set.get_unranked_ids(query.id)
    return [(identifier, score) for identifier, score in run.get(query.id, ()) if identifier not in unranked]


def _score_by_run(
    query: TrainingQuery,
    ranked: Sequence[tuple[str, float]],
    rows: Mapping[str, int],
    negatives_per_query: int,
    label: str,
) -> TrainingQuery | None:
    unknown = next((identifier for identifier, _ in ranked if identifier not in rows), None)
    if unknown is not None:
        raise DataError(
            f"{label}: query {query.id!r} ranks {unknown!r}, which is not in the collection",
            "use a run on the collection that is trained on",
        )
    scores = {rows[identifier]: score for identifier, score in ranked}
    positives = tuple(row for row in query.positives if row in scores)
    negatives = tuple(row for row in scores if row not in query.positives)[:negatives_per_query]
    if not positives:
        return None
    return replace(query, positives=positives, negatives=negatives,
                   scores=tuple(float(scores[row]) for row in (*positives, *negatives)))  # fmt: skip


def _read_scored_ranking(path: Path) -> ScoredRanking:
    """A record's folder with its raw scores, or a TREC run file."""
    if not path.exists():
        raise MissingError(
            f"there is no run at {path}", "name a run's folder, a TREC run file, judgments, or cross:model=NAME"
        )
    if not (path / RECORD_FILE).is_file():
        return read_scored_trec_run(path)
    scores = read_raw_scores(path)
    ranking = {
        decode_id(query): list(map(decode_id, ids)) for query, ids in read_trec_run(path / "run.trec.gz").items()
    }
    return {query: list(zip(ids, scores[query], strict=True)) for query, ids in ranking.items()}
