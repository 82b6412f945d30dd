"""What a reranker would begin with, before anything is asked: the first query's prompt."""

from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import RerankerRequest
from retbench.corpora.texts import join_fields
from retbench.errors import InapplicableError
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.factory import build_reranker_spec
from retbench.pipelines.runs.saved_run import First, ours
from retbench.rerankers.candidates import Candidates
from retbench.retrievers.ranking import Ranking

IMAGINED = "the collection's first documents, because the first stage has not been run"


def previews(bench: EvaluationJob, rerankers: list[RerankerRequest], crew: ModelResolver) -> list[dict[str, Any]]:
    """Every reranker's first prompt on the bench's run; later ones in a chain are shown the same candidates."""
    first, real = _first(bench)
    return [_preview(first, wanted, real, bench, crew) for wanted in rerankers]


def _first(bench: EvaluationJob) -> tuple[First, bool]:
    """The run on disk; where there is none, one that ranks the collection's first documents."""
    if bench.found():
        return ours(Path(bench.folder), bench.collection, bench.card), True
    rows = np.arange(min(bench.card.depth, len(bench.collection.corpus)))
    ranking = Ranking([rows], [np.arange(len(rows), 0, -1, dtype=np.float64)])
    return First(bench.draft(), bench.collection, bench.card, ranking), False


def _preview(
    first: First, wanted: RerankerRequest, real: bool, bench: EvaluationJob, crew: ModelResolver
) -> dict[str, Any]:
    facts = {"rerank": wanted.spelling, "candidates": "the run on disk" if real else IMAGINED}
    try:
        judge = build_reranker_spec(wanted, first, bench.candidate, crew)
        depth = wanted.settings.depth
        query = join_fields(first.collection.queries[0], ("text",))
        pool = Candidates(0, query, first.ranking.rows[0][:depth], first.ranking.scores[0][:depth])
        return {**facts, **judge.preview(first, pool)}
    except InapplicableError as error:
        return {**facts, "skipped": error.cause}
