"""Search-Adaptor's training (arXiv 2310.08750): a small residual net learns to rank from stored vectors alone.

Three losses: ranking (log(1 + exp(s_ik - s_ij)) for a document j judged above k, weighed by how far above), recovery
(how far vectors were moved), prediction (how far a query is from what a helper, used in training only, guesses from
its document). Every alpha and beta is tried; validation queries choose among them and say when to stop. What a loss is
worth is seen by leaving it out: `ranking=0`, `alpha=[0]`, `beta=[0]`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retbench.cards.adaptor_recipe import AdaptorRecipe

ValidationScore = Callable[[dict[str, np.ndarray]], float]  # an adaptor's tensors to a validation score


@dataclass(frozen=True)
class AdaptorTrainingData:
    """Vectors and judgments to learn from. `pairs` are rows of (query, document, grade).

    `top[q]` are the documents that negatives of a query are drawn from; without it all are.
    """

    queries: np.ndarray
    documents: np.ndarray
    pairs: np.ndarray
    grades: list[dict[int, int]]  # of each query: documents judged, with their grades
    top_documents: list[np.ndarray] | None = None


@dataclass(frozen=True)
class TrainedAdaptor:
    """One training: its weights of the losses, its best validation score, and the tensors that reached it."""

    alpha: float
    beta: float
    score: float
    step: int
    tensors: dict[str, np.ndarray]


class AdaptorNet(nn.Module):
    """One or two layers of the vectors' own width; as an adaptor, what it gives is added to what it got."""

    def __init__(self, width: int, zero: bool, layers: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.last = nn.Linear(width, width) if layers == 2 else None
        if zero:
            for weight in (self.last or self.first).parameters():
                nn.init.zeros_(weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """The net's own output."""
        found: Tensor = self.first(vectors)
        return found if self.last is None else self.last(functional.relu(found))

    def copy_tensors(self) -> dict[str, np.ndarray]:
        """A copy of the weights."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}


class TripleSampler:
    """Batches of triples, the same for every alpha and beta."""

    def __init__(self, lessons: AdaptorTrainingData, recipe: AdaptorRecipe) -> None:
        self.lessons, self.recipe = lessons, recipe
        self.draw = np.random.default_rng(recipe.seed)

    def sample_batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some pairs, for each of them rows of negatives, and by how much the pair is judged above each."""
        pairs = self.lessons.pairs[self.draw.integers(len(self.lessons.pairs), size=self.recipe.batch_size)]
        negatives = np.stack([self._sample_negatives(int(query)) for query in pairs[:, 0]])
        below = [
            [self.lessons.grades[q].get(int(k), 0) for k in row] for q, row in zip(pairs[:, 0], negatives, strict=True)
        ]
        gaps = np.maximum(pairs[:, 2:3] - np.array(below), 0)
        return pairs, negatives, gaps

    def _sample_negatives(self, query: int) -> np.ndarray:
        among = self.lessons.top_documents[query] if self.lessons.top_documents else None
        size = self.recipe.negatives_per_pair
        if among is None:
            return self.draw.integers(len(self.lessons.documents), size=size)
        return among[self.draw.integers(len(among), size=size)]


def compute_losses(
    net: AdaptorNet,
    guess: AdaptorNet,
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor,
    grades: Tensor,
    gaps: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking, recovery and prediction of one batch; `negatives` has a row of documents for each query."""
    asked, found, other = (vectors + net(vectors) for vectors in (queries, documents, negatives))
    above = functional.cosine_similarity(asked, found, dim=-1)
    below = functional.cosine_similarity(asked[:, None], other, dim=-1)
    ranking = (gaps * functional.softplus(below - above[:, None])).mean()
    moved = torch.cat([(after - before).abs().sum(-1).flatten() for after, before in (
        (asked, queries), (found, documents), (other, negatives)
    )])  # fmt: skip
    guessed = (asked - guess(found)).abs().sum(-1)
    return ranking, moved.mean(), (grades * guessed).sum() / grades.sum()


def train_with_loss_weights(
    lessons: AdaptorTrainingData, recipe: AdaptorRecipe, alpha: float, beta: float, score: ValidationScore
) -> TrainedAdaptor:
    """One pair of weights, until the validation score has not risen for as long as patience lasts."""
    width = lessons.queries.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net, guess = AdaptorNet(width, True, recipe.layers), AdaptorNet(width, False)
    moving = torch.optim.Adam([*net.parameters(), *guess.parameters()], lr=recipe.learning_rate)
    drawer = TripleSampler(lessons, recipe)
    best = TrainedAdaptor(alpha, beta, score(net.copy_tensors()), 0, net.copy_tensors())
    for step in range(1, recipe.max_steps + 1):
        pairs, negatives, gaps = drawer.sample_batch()
        ranking, recovery, prediction = compute_losses(
            net, guess,
            torch.from_numpy(lessons.queries[pairs[:, 0]]), torch.from_numpy(lessons.documents[pairs[:, 1]]),
            torch.from_numpy(lessons.documents[negatives]), torch.from_numpy(pairs[:, 2]).float(),
            torch.from_numpy(gaps).float(),
        )  # fmt: skip
        moving.zero_grad()
        (recipe.ranking_weight * ranking + alpha * recovery + beta * prediction).backward()  # type: ignore[no-untyped-call]  # torch's own
        moving.step()
        if step % recipe.eval_steps == 0:
            found = score(net.copy_tensors())
            if found > best.score:
                best = TrainedAdaptor(alpha, beta, found, step, net.copy_tensors())
            if step - best.step >= recipe.patience:
                break
    return best


def search_loss_weights(
    lessons: AdaptorTrainingData, recipe: AdaptorRecipe, score: ValidationScore, tell: Callable[[TrainedAdaptor], None]
) -> TrainedAdaptor:
    """Every alpha with every beta; the best on the validation queries, the earlier one of equals."""
    best: TrainedAdaptor | None = None
    for alpha in recipe.alpha:
        for beta in recipe.beta:
            learned = train_with_loss_weights(lessons, recipe, alpha, beta, score)
            tell(learned)
            if best is None or learned.score > best.score:
                best = learned
    if best is None:
        raise TypeError("an empty grid was let through")
    return best
