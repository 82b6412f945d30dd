"""Scores of a ranking: filtered by the task's rules, cut at its depth, and compared with the judgments.

Evaluation, reranking, imported runs and evaluation during training all score through `score_ranking`.
"""

from dataclasses import dataclass
from typing import Any

from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.records.results_folder import RunFiles
from retbench.retrievers.ranking import Ranking
from retbench.scoring.metrics import Scores, compute_mean_scores, score_run


@dataclass(frozen=True)
class ScoredRanking:
    """A ranking as it counts, and its scores."""

    ranking: Ranking
    document_ids: dict[str, list[str]]
    per_query: dict[str, Scores]

    def compute_means(self) -> Scores:
        """Return the mean of each metric over the queries."""
        return compute_mean_scores(self.per_query)

    def to_run_files(self, sample: dict[str, Any]) -> RunFiles:
        """Return the files of the run beside its record; `sample` holds the exact first texts."""
        raw_scores = (scores.tolist() for scores in self.ranking.scores)
        return RunFiles(
            self.document_ids, dict(zip(self.document_ids, raw_scores, strict=True)), self.per_query, sample
        )


def score_ranking(ranking: Ranking, collection: Collection, task: TaskCard) -> ScoredRanking:
    """Remove documents that the task does not rank, cut at its depth, and score every judged query."""
    ranking = ranking.filter_and_cut(collection, task.same_id == "drop", task.depth)
    document_ids = ranking.to_document_ids(collection)
    per_query = score_run(document_ids, collection.judgments, task.depth, task.relevant_from)
    return ScoredRanking(ranking, document_ids, per_query)


def compute_search_depth(collection: Collection, task: TaskCard) -> int:
    """Return how many documents to retrieve, so that `task.depth` remain after the filter."""
    return task.depth + (task.same_id == "drop") + collection.max_excluded
