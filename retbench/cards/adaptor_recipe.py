"""How an adaptor is trained (Search-Adaptor, arXiv 2310.08750): the paper's settings, and ours where it gives none.

From accounts of the paper: Adam, the learning rate, the batch size, the steps, the patience, ten negatives a pair, the
grids, the split, and the losses with `loss = "published"`. Ours: two layers of the vectors' own width with ReLU, the
last one zero at the start; with `loss = "averaged"` the ranking loss is a mean over triples and recovery one mean over
all vectors; L1 norms are summed over dimensions; negatives are drawn from the whole corpus, or with `negatives_top_k`
from the documents that the query ranks highest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards import options, recipe_keys
from retbench.cards.value_checks import require_above_zero, require_at_least
from retbench.errors import DataError
from retbench.system import toml_parser


@dataclass(frozen=True)
class AdaptorRecipe:
    """`alpha` weighs the recovery loss and `beta` the prediction loss; each pair of the two grids is tried.

    `loss = "published"` sums the ranking loss over the pairs of a batch, and recovery is the mean over queries plus the
    mean over documents, as the paper writes them. The sum is over a thousand pairs, so the same alpha and beta then
    weigh a thousand times less; Adam takes steps of the same size for both (docs/adaptor.md).

    `ranking_weight` weighs the ranking loss; 0 leaves it out. One layer is a plain linear map, for comparison. If there
    are more than `max_queries` training queries, that many are drawn. `patience` is the number of steps without a
    better validation score after which training stops. `max_length` cuts texts, as `run --set max_length` does.
    """

    learning_rate: float = 1e-3
    batch_size: int = 128
    max_steps: int = 2000
    patience: int = 125
    eval_steps: int = 25  # steps between two evaluations on the validation queries
    negatives_per_pair: int = 10
    negatives_top_k: int = 0
    layers: Literal[1, 2] = 2
    loss: Literal["averaged", "published"] = "averaged"
    ranking_weight: float = 1.0
    alpha: tuple[float, ...] = (0.0, 0.1, 1.0)
    beta: tuple[float, ...] = (0.0, 0.01, 0.1)
    validation_ratio: float = 0.2
    max_queries: int | None = None
    max_length: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        require_above_zero(self, "learning_rate")
        require_at_least(self, 1, "batch_size", "max_steps", "patience", "eval_steps", "negatives_per_pair")
        require_at_least(self, 1, "max_length")
        require_at_least(self, 0, "negatives_top_k", "ranking_weight", "seed")
        if not 0 < self.validation_ratio < 1:
            raise DataError(
                f"validation_ratio = {self.validation_ratio} is not between 0 and 1", "write a number such as 0.2"
            )
        require_at_least(self, 2, "max_queries")
        for name, weights in (("alpha", self.alpha), ("beta", self.beta)):
            if not weights or min(weights) < 0:
                problem = f"= {list(weights)} has a weight below 0" if weights else "is an empty list"
                raise DataError(f"{name} {problem}", f"write {name}=[0.1], or more values")


def load_adaptor_recipe(file: Path) -> AdaptorRecipe:
    """Read a recipe file; an old key is an error that names the new one."""
    recipe_keys.check_file_keys(file, recipe_keys.ADAPTOR)
    return toml_parser.load_card(AdaptorRecipe, file)


def apply_adaptor_options(recipe: AdaptorRecipe, changes: dict[str, str]) -> AdaptorRecipe:
    """A recipe with `--set` applied, such as `alpha=[0.1]`."""
    recipe_keys.check_option_keys(changes, recipe_keys.ADAPTOR)
    return options.apply_options(recipe, changes)
