"""Hard negatives in a recipe: where they come from, and which candidates are dropped because they may be relevant."""

from dataclasses import dataclass
from typing import Literal

from retbench.cards.value_checks import require_at_least
from retbench.errors import DataError


@dataclass(frozen=True)
class MiningSettings:
    """Where a query's hard negatives come from.

    `given`: from the data. `bm25`: the passages that BM25 ranks highest. `model`: those that the model ranks highest
    before training. Ranks `rank_from` to `rank_to` are used; positives are never negatives and do not count as ranks.
    Three filters drop passages that may be relevant: `max_score_ratio` those that score more than this times the
    query's best positive, `score_margin` those that score less than this below it, `max_score` those that score more
    than this. The scores are the miner's, or those of a `cross_encoder` (a model, or `cross:model=NAME,dtype=...`) on a
    `score_scale`: its probability from 0 to 1, or its logit. Each query keeps at most `negatives_per_query`. `file` is
    the mined file of an earlier training, used instead of mining.
    """

    source: Literal["given", "bm25", "model"] = "given"
    rank_from: int = 1
    rank_to: int = 50
    max_score_ratio: float | None = None
    negatives_per_query: int = 30
    file: str | None = None
    score_margin: float | None = None
    max_score: float | None = None
    cross_encoder: str | None = None
    score_scale: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        require_at_least(self, 1, "negatives_per_query")
        require_at_least(self, 0, "max_score_ratio")
        if not 1 <= self.rank_from <= self.rank_to:
            raise DataError(
                f"rank_from = {self.rank_from} and rank_to = {self.rank_to} are no range",
                "write 1 <= rank_from <= rank_to",
            )
        if self.cross_encoder and not self.has_filter:
            raise DataError(
                "mining.cross_encoder has nothing to filter by",
                "write max_score_ratio (such as 0.95), score_margin or max_score",
            )
        if self.has_filter and self.source == "given" and not (self.cross_encoder or self.file):
            raise DataError(
                "the negatives of the data have no scores to filter by",
                'write mining source = "bm25" or "model", or name a cross_encoder',
            )

    @property
    def has_filter(self) -> bool:
        """Whether passages are dropped by their scores."""
        return any(limit is not None for limit in (self.max_score_ratio, self.score_margin, self.max_score))
