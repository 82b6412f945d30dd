"""Teachers: who says how good each passage of a query is, for distillation and for lists that are to be ranked.

The data's own `scores` are one. Two more are made here from what lies at hand anyway: graded judgments, and a run of
another system (a reranker's, say), which also brings the passages that it scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from retbench.errors import DataError
from retbench.training.training_set import TrainingQuery, TrainingSet

JUDGMENTS, GIVEN = "judgments", "given"

ScoredRanking = Mapping[str, Sequence[tuple[str, float]]]  # query id to documents with their scores


def add_scores_from_judgments(training: TrainingSet) -> TrainingSet:
    """The grade of a passage is its score; what nobody judged has grade 0, as in nDCG."""
    if not any(query.grades for query in training.queries):
        raise DataError(f"{training.name} has no graded judgments", "name a task, or give `scores` in the data")
    kept = [replace(query, scores=_score_by_grade(query)) for query in training.queries]
    distinct = sorted({score for query in kept for score in query.scores or ()})
    return training.with_queries(kept, teacher={"source": JUDGMENTS, "grades": distinct})


def _score_by_grade(query: TrainingQuery) -> tuple[float, ...]:
    known = dict(query.grades)
    return tuple(float(known.get(row, 0)) for row in (*query.positives, *query.negatives))


def add_scores_from_run(training: TrainingSet, run: ScoredRanking, label: str, keep: int) -> TrainingSet:
    """Passages and scores of a run; a query whose positives it does not rank is left out and counted."""
    if training.passage_ids is None:
        raise DataError(f"{training.name} has no ids that a run could name", "give `scores` in the data instead")
    rows = {name: row for row, name in enumerate(training.passage_ids)}
    kept = [
        taught
        for query in training.queries
        if (taught := _score_by_run(query, run.get(query.id, ()), rows, keep, label))
    ]
    if not kept:
        raise DataError(
            f"{label} ranks no positive of a query of {training.name}",
            "make the run on the split that is learned from: retbench run --set split=train",
        )
    return training.with_queries(
        kept, teacher={"run": label, "queries_without_teacher": len(training.queries) - len(kept)}
    )


def _score_by_run(
    query: TrainingQuery, ranked: Sequence[tuple[str, float]], rows: Mapping[str, int], keep: int, label: str
) -> TrainingQuery | None:
    strange = next((name for name, _ in ranked if name not in rows), None)
    if strange is not None:
        raise DataError(f"{label}: query {query.id!r} ranks {strange!r}, which is not in the collection", "use its own")
    scored = {rows[name]: score for name, score in ranked}
    positives = tuple(row for row in query.positives if row in scored)
    others = tuple(row for row in scored if row not in query.positives)[:keep]
    if not positives:
        return None
    return replace(query, positives=positives, negatives=others,
                   scores=tuple(float(scored[row]) for row in (*positives, *others)))  # fmt: skip
