"""Evaluation during training: a task's main metric by the current weights. Nothing is stored."""

from dataclasses import dataclass

from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.encoders.encoder_spec import compute_length_limits
from retbench.records.phase_timer import ProgressListener
from retbench.retrievers.score_ranking import compute_search_depth, score_ranking
from retbench.training.in_training_search import rank_passages
from retbench.training.train_forward import TrainableEncoder
from retbench.training.training_set import JoinedTexts


@dataclass(frozen=True)
class TrainingEvaluator:
    """Scores one task as often as it is called; the encoder's tokenizer has the task's instruction."""

    encoder: TrainableEncoder
    card: TaskCard
    collection: Collection
    max_length: int | None
    progress: ProgressListener

    def __call__(self) -> float:
        """The score now. All processes compute it together and get the same."""
        queries = [row.text.strip() for row in self.collection.queries]
        k = compute_search_depth(self.collection, self.card)
        passages = JoinedTexts(self.collection.corpus, self.card.fields)
        length_limits = compute_length_limits(self.card, self.max_length, None)
        top_passages = rank_passages(
            self.encoder, queries, passages, min(k, len(passages)), length_limits, lambda *_: None
        )
        return score_ranking(top_passages, self.collection, self.card).compute_means()[self.card.metric]
