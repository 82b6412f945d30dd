"""Scores on the way: a task's main metric by the weights as they are, nothing stored."""

from dataclasses import dataclass

from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.encoders.encoder_spec import limits
from retbench.records.phase_timer import Show
from retbench.scoring.metrics import mean_scores, score_run
from retbench.training import distributed, fsdp
from retbench.training.in_training_search import rank
from retbench.training.train_forward import Trainee
from retbench.training.training_set import Joined


@dataclass(frozen=True)
class Examiner:
    """One task, asked again and again."""

    trainee: Trainee
    card: TaskCard
    collection: Collection
    own_limit: int | None
    show: Show

    def __call__(self) -> float:
        """The score now; one process works it out and tells the others, unless they share the weights."""
        if fsdp.is_shared(self.trainee.model):
            return self._score()
        return distributed.total(self._score() if distributed.rank() == 0 else 0.0)

    def _score(self) -> float:
        queries = [row.text.strip() for row in self.collection.queries]
        k = self.card.depth + (self.card.same_id == "drop") + self.collection.most_excluded
        passages = Joined(self.collection.corpus, self.card.fields)
        sides = limits(self.card, self.own_limit, None)
        found = rank(self.trainee, queries, passages, min(k, len(passages)), sides, lambda *_: None)
        ranking = found.prepared(self.collection, self.card.same_id == "drop", self.card.depth)
        per_query = score_run(
            ranking.named(self.collection), self.collection.judgments, self.card.depth, self.card.relevant_from
        )
        return mean_scores(per_query)[self.card.metric]
