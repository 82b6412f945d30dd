"""The first prompt of each reranker, for the dry run."""

from typing import Any

import numpy as np

from retbench.cards.reranker_settings import RerankerRequest
from retbench.corpora.texts import join_fields
from retbench.errors import InapplicableError
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.factory import build_reranker_spec
from retbench.pipelines.runs.saved_run import SavedRun, load_run
from retbench.rerankers.candidates import Candidates
from retbench.retrievers.ranking import Ranking

PLACEHOLDER_CANDIDATES = "the first documents of the collection, because the first stage has not been run"


def preview_rerankers(
    job: EvaluationJob, requests: list[RerankerRequest], resolver: ModelResolver
) -> list[dict[str, Any]]:
    """Return the first prompt of every reranker; all of a chain are shown with the candidates of the first stage."""
    first_stage, is_finished = _load_first_stage(job)
    source = "the run on disk" if is_finished else PLACEHOLDER_CANDIDATES
    return [{"rerank": r.spelling, "candidates": source, **_preview(first_stage, r, job, resolver)} for r in requests]


def _load_first_stage(job: EvaluationJob) -> tuple[SavedRun, bool]:
    """Load the run from disk; without one, rank the first documents of the collection."""
    if job.find_record():
        return load_run(job.folder, job.collection, job.task), True
    rows = np.arange(min(job.task.depth, len(job.collection.corpus)))
    ranking = Ranking([rows], [np.arange(len(rows), 0, -1, dtype=np.float64)])
    return SavedRun(job.build_draft_record(), job.collection, job.task, ranking), False


def _preview(
    first_stage: SavedRun, request: RerankerRequest, job: EvaluationJob, resolver: ModelResolver
) -> dict[str, Any]:
    try:
        spec = build_reranker_spec(request, first_stage, job.model, resolver)
        depth, ranking = request.settings.depth, first_stage.ranking
        query = join_fields(first_stage.collection.queries[0], ("text",))
        return spec.preview(first_stage, Candidates(0, query, ranking.rows[0][:depth], ranking.scores[0][:depth]))
    except InapplicableError as error:
        return {"skipped": error.cause}
