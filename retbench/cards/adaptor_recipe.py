"""How an adaptor is trained (Search-Adaptor, arXiv 2310.08750): the paper's settings, and ours where it says nothing.

Read in others' accounts of the paper: Adam, the rate, the batch, the iterations and the patience, ten negatives a pair,
the grids and the split. Ours: two layers of the vectors' own width with ReLU, the last one zero at the start; the
ranking loss is a mean over triples, recovery and prediction are L1 norms summed over dimensions; negatives are drawn
from the whole corpus, or with `top` from the first so many documents of the query.
"""

from dataclasses import dataclass
from typing import Literal

from retbench.errors import DataError


@dataclass(frozen=True)
class AdaptorRecipe:
    """`alpha` weighs the recovery loss and `beta` the prediction loss; each pair of the two grids is tried.

    `ranking` weighs the ranking loss, and 0 leaves it out. One layer is a plain linear map, to compare with. Of more
    than `queries` training queries so many are drawn. `max_length` cuts texts, as `run --set max_length` does.
    """

    rate: float = 1e-3
    batch: int = 128
    iterations: int = 2000
    patience: int = 125
    every: int = 25  # iterations between two looks at the validation queries
    negatives: int = 10
    top: int = 0
    layers: Literal[1, 2] = 2
    ranking: float = 1.0
    alpha: tuple[float, ...] = (0.0, 0.1, 1.0)
    beta: tuple[float, ...] = (0.0, 0.01, 0.1)
    validation: float = 0.2
    queries: int | None = None
    max_length: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.batch, self.iterations, self.every, self.negatives) < 1 or self.rate <= 0:
            raise DataError("a batch, iterations, negatives or a rate of nothing", "give numbers above zero")
        if not 0 < self.validation < 1:
            raise DataError(f"validation={self.validation} is no share", "give a share between 0 and 1, such as 0.2")
        if self.queries is not None and self.queries < 2:
            raise DataError(f"queries={self.queries} leaves nothing to learn from", "give 2 or more")
        if not self.alpha or not self.beta:
            raise DataError("an empty grid", "give alpha=[0.1] and beta=[0.01], or more of each")
