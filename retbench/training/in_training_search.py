"""Search with a model in training: for mining before the first step, and for scores on the way."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.retrievers.exact_search import search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import Block
from retbench.training.train_forward import Trainee, passes

CHUNK = 1024  # texts tokenised at a time

Advance = Callable[[int, int], None]


def rank(
    trainee: Trainee, queries: Sequence[str], passages: Sequence[str], k: int, limits: tuple[int, int], advance: Advance
) -> Ranking:
    """The k best passages of every query, by the weights as they are now; limits are those of the two sides."""
    asked = np.concatenate([block.vectors for block in embedded(trainee, queries, "query", limits[0], advance)])
    return search(asked, embedded(trainee, passages, "document", limits[1], advance), k)


@torch.no_grad()
def embedded(trainee: Trainee, texts: Sequence[str], role: Role, limit: int, advance: Advance) -> Iterator[Block]:
    """Unit vectors of all texts, in order, block by block."""
    was_training = trainee.model.training
    trainee.model.eval()
    for start in range(0, len(texts), CHUNK):
        tokens = trainee.wording.tokens(texts[start : start + CHUNK], role, limit)
        vectors: np.ndarray | None = None
        for part in passes(tokens.lengths, trainee.recipe.batch.tokens):
            found = torch.nn.functional.normalize(trainee.vectors(tokens.take(part), 0), dim=1).cpu().numpy()
            vectors = np.empty((len(tokens), found.shape[1]), np.float32) if vectors is None else vectors
            vectors[part] = found
            advance(len(part), len(texts))
        if vectors is not None:
            yield Block(np.arange(start, start + len(vectors)), vectors)
    trainee.model.train(was_training)
