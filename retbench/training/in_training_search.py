"""Search with a model in training: for mining before the first step, and for scores on the way."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.retrievers.exact_search import search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock
from retbench.training.train_forward import TrainableEncoder, split_into_passes

TEXTS_PER_CHUNK = 1024  # texts tokenised at a time

Advance = Callable[[int, int], None]


def rank_passages(
    trainee: TrainableEncoder,
    queries: Sequence[str],
    passages: Sequence[str],
    k: int,
    limits: tuple[int, int],
    advance: Advance,
) -> Ranking:
    """The k best passages of every query, by the weights as they are now; limits are those of the two sides."""
    asked = np.concatenate(
        [block.vectors for block in iterate_embeddings(trainee, queries, "query", limits[0], advance)]
    )
    return search(asked, iterate_embeddings(trainee, passages, "document", limits[1], advance), k)


@torch.no_grad()
def iterate_embeddings(
    trainee: TrainableEncoder, texts: Sequence[str], role: Role, limit: int, advance: Advance
) -> Iterator[VectorBlock]:
    """Unit vectors of all texts, in order, block by block."""
    was_training = trainee.model.training
    trainee.model.eval()
    for start in range(0, len(texts), TEXTS_PER_CHUNK):
        tokens = trainee.prompt_tokenizer.tokenize(texts[start : start + TEXTS_PER_CHUNK], role, limit)
        vectors: np.ndarray | None = None
        for part in split_into_passes(tokens.lengths, trainee.recipe.batch.max_tokens):
            found = torch.nn.functional.normalize(trainee.encode(tokens.select(part), 0), dim=1).cpu().numpy()
            vectors = np.empty((len(tokens), found.shape[1]), np.float32) if vectors is None else vectors
            vectors[part] = found
            advance(len(part), len(texts))
        if vectors is not None:
            yield VectorBlock(np.arange(start, start + len(vectors)), vectors)
    trainee.model.train(was_training)
