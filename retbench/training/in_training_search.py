"""Search with a model in training: to mine hard negatives before the first step, and to evaluate during training.

Several processes divide the passages: each embeds and searches its part, and all get the ranking of the whole. With
sharded weights every process must run the same passes, so each searches everything.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.encoders.pooling import scale_for_similarity
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.engines.memory import compute_in_halves
from retbench.retrievers.exact_search import search_exactly
from retbench.retrievers.ranking import Ranking, merge_rankings
from retbench.store.shard_store import VectorBlock
from retbench.training import distributed
from retbench.training.fsdp import is_sharded
from retbench.training.hard_negatives import Ranker
from retbench.training.train_forward import TrainableEncoder, split_into_passes

TEXTS_PER_CHUNK = 1024  # texts tokenized at a time
QUERIES_PER_GATHER = 4096  # queries whose rankings the processes exchange at a time: on GPUs this is GPU memory

Advance = Callable[[int, int], None]


def build_ranker(
    encoder: TrainableEncoder, passages: Sequence[str], length_limits: tuple[int, int], advance: Advance
) -> Ranker:
    """A ranker of `passages` by the model's current weights."""
    return lambda queries, k: rank_passages(encoder, queries, passages, k, length_limits, advance)


def rank_passages(
    encoder: TrainableEncoder,
    queries: Sequence[str],
    passages: Sequence[str],
    k: int,
    length_limits: tuple[int, int],
    advance: Advance,
) -> Ranking:
    """The k best passages of every query by the current weights; the limits are those of queries and passages."""
    query_limit, passage_limit = length_limits
    query_blocks = iterate_embeddings(encoder, queries, "query", query_limit, advance)
    query_vectors = np.concatenate([block.vectors for block in query_blocks])
    is_divided = distributed.get_world_size() > 1 and not is_sharded(encoder.model)
    part = (distributed.get_rank(), distributed.get_world_size()) if is_divided else (0, 1)
    blocks = iterate_embeddings(encoder, passages, "document", passage_limit, advance, part)
    ranking = search_exactly(query_vectors, blocks, k)
    return gather_rankings(ranking, k) if is_divided else ranking


def gather_rankings(own: Ranking, k: int) -> Ranking:
    """The k best of all processes, whose rankings are of different documents."""
    gathered = Ranking([], [])
    for start in range(0, len(own.rows), QUERIES_PER_GATHER):
        queries = slice(start, start + QUERIES_PER_GATHER)
        parts = distributed.gather_objects((own.rows[queries], own.scores[queries]))
        merged = merge_rankings([Ranking(*part) for part in parts], k)
        gathered.rows.extend(merged.rows)
        gathered.scores.extend(merged.scores)
    return gathered


@torch.no_grad()
def iterate_embeddings(
    encoder: TrainableEncoder,
    texts: Sequence[str],
    role: Role,
    limit: int,
    advance: Advance,
    part: tuple[int, int] = (0, 1),
) -> Iterator[VectorBlock]:
    """The vectors of the texts, ready for the method's similarity, in order, block by block.

    With `part` = (i, n) only every n-th block from the i-th on.
    """
    was_training = encoder.model.training
    encoder.model.eval()
    for start in range(part[0] * TEXTS_PER_CHUNK, len(texts), part[1] * TEXTS_PER_CHUNK):
        tokens = encoder.prompt_tokenizer.tokenize(texts[start : start + TEXTS_PER_CHUNK], role, limit)
        vectors: np.ndarray | None = None
        for pass_rows in split_into_passes(tokens.lengths, encoder.recipe.batch.max_tokens):
            for rows, scaled in _encode_pass(encoder, tokens, pass_rows):
                vectors = np.empty((len(tokens), scaled.shape[1]), np.float32) if vectors is None else vectors
                vectors[rows] = scaled
                advance(len(rows), len(texts))
        if vectors is not None:
            yield VectorBlock(np.arange(start, start + len(vectors)), vectors)
    encoder.model.train(was_training)


def _encode_pass(
    encoder: TrainableEncoder, tokens: TokenizedTexts, rows: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The vectors of a pass. It is never split if weights are sharded: all processes must run the same passes."""
    if is_sharded(encoder.model):
        return [(rows, _encode_rows(encoder, tokens, rows))]
    return compute_in_halves(rows, partial(_encode_rows, encoder, tokens))


def _encode_rows(encoder: TrainableEncoder, tokens: TokenizedTexts, rows: np.ndarray) -> np.ndarray:
    vectors = encoder.encode(tokens.select(rows))
    return scale_for_similarity(vectors, encoder.recipe.method.similarity).cpu().numpy()
