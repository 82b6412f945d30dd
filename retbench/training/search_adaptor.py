"""Search-Adaptor's training (arXiv 2310.08750): a small residual net that learns to rank from stored vectors alone.

It has three losses. Ranking: log(1 + exp(s_ik - s_ij)) for a document j judged above k, weighed by the difference of
the grades. Recovery: how far vectors are moved. Prediction: how far a query is from what a helper net, used in training
only, predicts from its document. Every alpha and beta is tried; validation queries choose among them and stop the
training. To measure what a loss is worth, leave it out: `ranking_weight=0`, `alpha=[0]`, `beta=[0]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.method import Similarity

ValidationScore = Callable[[dict[str, np.ndarray]], float]  # an adaptor's tensors to a validation score


@dataclass(frozen=True)
class AdaptorTrainingData:
    """Vectors and judgments to train on. `pairs` are rows of (query, document, grade).

    `grades[q]` are the grades of a query's judged documents. `top_documents[q]` are the documents that its negatives
    are drawn from; without it they are drawn from all. The ranking loss compares by `similarity`.
    """

    queries: np.ndarray
    documents: np.ndarray
    pairs: np.ndarray
    grades: list[dict[int, int]]
    top_documents: list[np.ndarray] | None = None
    similarity: Similarity = "cosine"

    def select_vectors(self, pairs: np.ndarray, negatives: np.ndarray) -> "TripleVectors":
        """The vectors of some pairs and of their negatives."""
        rows = (self.queries[pairs[:, 0]], self.documents[pairs[:, 1]], self.documents[negatives])
        return TripleVectors(*map(torch.from_numpy, rows))


@dataclass(frozen=True)
class TrainedAdaptor:
    """One training: its loss weights, its best validation score, and the tensors and the step of that score."""

    alpha: float
    beta: float
    score: float
    step: int
    tensors: dict[str, np.ndarray]


class AdaptorNet(nn.Module):
    """One or two layers of the vectors' own width; an adaptor adds the output to the input."""

    def __init__(self, width: int, zero: bool, layers: int = 2, similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.similarity = similarity
        self.first = nn.Linear(width, width)  # the names are those of the tensors in an adaptor's file
        self.last = nn.Linear(width, width) if layers == 2 else None
        if zero:
            for weight in (self.last or self.first).parameters():
                nn.init.zeros_(weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """The net's own output, without the input."""
        hidden: Tensor = self.first(vectors)
        return hidden if self.last is None else self.last(functional.relu(hidden))

    def compare(self, queries: Tensor, documents: Tensor) -> Tensor:
        """The similarity of each query and document."""
        if self.similarity == "dot":
            return (queries * documents).sum(-1)
        return functional.cosine_similarity(queries, documents, dim=-1)

    def copy_tensors(self) -> dict[str, np.ndarray]:
        """A copy of the weights."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}


class TripleSampler:
    """Batches of pairs with negatives, the same for every alpha and beta."""

    def __init__(self, data: AdaptorTrainingData, recipe: AdaptorRecipe) -> None:
        self.data, self.recipe = data, recipe
        self.generator = np.random.default_rng(recipe.seed)

    def sample_batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs, rows of negatives for each pair, and how much higher the pair is judged than each negative."""
        pairs = self.data.pairs[self.generator.integers(len(self.data.pairs), size=self.recipe.batch_size)]
        negatives = np.stack([self._sample_negatives(int(query)) for query in pairs[:, 0]])
        negative_grades = [
            [self.data.grades[query].get(int(document), 0) for document in documents]
            for query, documents in zip(pairs[:, 0], negatives, strict=True)
        ]
        gaps = np.maximum(pairs[:, 2:3] - np.array(negative_grades), 0)
        return pairs, negatives, gaps

    def _sample_negatives(self, query: int) -> np.ndarray:
        candidates = self.data.top_documents[query] if self.data.top_documents else None
        size = self.recipe.negatives_per_pair
        if candidates is None:
            return self.generator.integers(len(self.data.documents), size=size)
        return candidates[self.generator.integers(len(candidates), size=size)]


class TripleVectors(NamedTuple):
    """The vectors of a batch: queries, one document of each, and a row of negatives for each."""

    queries: Tensor
    documents: Tensor
    negatives: Tensor


def compute_losses(
    net: AdaptorNet, helper: AdaptorNet, vectors: TripleVectors, grades: Tensor, gaps: Tensor, published: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking, recovery and prediction loss of one batch.

    As `published`, the ranking loss is a sum over pairs, and recovery the mean of queries plus the mean of documents.
    """
    new_queries, new_documents, new_negatives = moved = [part + net(part) for part in vectors]
    positive_scores = net.compare(new_queries, new_documents)
    negative_scores = net.compare(new_queries[:, None], new_negatives)
    pair_losses = gaps * functional.softplus(negative_scores - positive_scores[:, None])
    distances = [(after - before).abs().sum(-1).flatten() for after, before in zip(moved, vectors, strict=True)]
    prediction_errors = (new_queries - helper(new_documents)).abs().sum(-1)
    prediction = (grades * prediction_errors).sum() / grades.sum()
    if published:
        return pair_losses.sum(), distances[0].mean() + torch.cat(distances[1:]).mean(), prediction
    return pair_losses.mean(), torch.cat(distances).mean(), prediction


def train_with_loss_weights(
    data: AdaptorTrainingData, recipe: AdaptorRecipe, alpha: float, beta: float, score: ValidationScore
) -> TrainedAdaptor:
    """Train with one alpha and beta until the validation score has not risen for `patience` steps."""
    width = data.queries.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = AdaptorNet(width, True, recipe.layers, data.similarity)
        helper = AdaptorNet(width, False)
    optimizer = torch.optim.Adam([*net.parameters(), *helper.parameters()], lr=recipe.learning_rate)
    sampler = TripleSampler(data, recipe)
    best = TrainedAdaptor(alpha, beta, score(net.copy_tensors()), 0, net.copy_tensors())
    for step in range(1, recipe.max_steps + 1):
        pairs, negatives, gaps = sampler.sample_batch()
        ranking, recovery, prediction = compute_losses(
            net, helper, data.select_vectors(pairs, negatives),
            torch.from_numpy(pairs[:, 2]).float(), torch.from_numpy(gaps).float(), recipe.loss == "published",
        )  # fmt: skip
        optimizer.zero_grad()
        (recipe.ranking_weight * ranking + alpha * recovery + beta * prediction).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        if step % recipe.eval_steps == 0:
            validation_score = score(net.copy_tensors())
            if validation_score > best.score:
                best = TrainedAdaptor(alpha, beta, validation_score, step, net.copy_tensors())
            if step - best.step >= recipe.patience:
                break
    return best


def search_loss_weights(
    data: AdaptorTrainingData,
    recipe: AdaptorRecipe,
    score: ValidationScore,
    on_trained: Callable[[TrainedAdaptor], None],
) -> TrainedAdaptor:
    """Try every alpha with every beta; return the best by validation score, the earlier one of equals."""
    best: TrainedAdaptor | None = None
    for alpha in recipe.alpha:
        for beta in recipe.beta:
            adaptor = train_with_loss_weights(data, recipe, alpha, beta, score)
            on_trained(adaptor)
            if best is None or adaptor.score > best.score:
                best = adaptor
    if best is None:
        raise TypeError("the grid of alpha and beta is empty")
    return best
