"""The gradient of one contrastive batch of any size: in passes of limited size, over one or many processes.

Without gradient caching all passes are kept in memory and one backward goes through them. With it (GradCache, Gao et
al. 2021) vectors are computed without gradients, the loss gives each vector its gradient, and every pass is run again
to carry that gradient into the weights: one pass in memory at a time, the same sum. Each text has its own seed, so that
its dropout is the same both times, and in any pass and process (`row_dropout.py`).

Processes divide a batch by its queries. Every process gets all vectors, computes the whole loss and propagates only its
own part; the sum over the processes is the gradient of the whole batch. With sharded weights caching is always on (see
`fsdp.py`).
"""

import numpy as np
import torch
from torch import Tensor

from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.training import distributed, fsdp
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.losses import contrastive_loss, ranknet_loss
from retbench.training.row_dropout import derive_row_seeds
from retbench.training.train_forward import TrainableEncoder, split_into_passes

SeededPass = tuple[np.ndarray, np.ndarray]  # rows that are run together, and the seeds of their dropout


def backward_batch(
    encoder: TrainableEncoder, batch: ContrastiveBatch, weight: float, seed: tuple[int, ...]
) -> tuple[float, int]:
    """Add the batch's gradient times `weight` to the weights; return the loss and the tokens that were run here."""
    own_rows = _select_own_rows(batch)
    tokens = _tokenize_rows(encoder, batch, own_rows)
    seeds = derive_row_seeds(seed, own_rows)
    passes = [(rows, seeds[rows]) for rows in split_into_passes(tokens.lengths, encoder.recipe.batch.max_tokens)]
    sharded = fsdp.is_sharded(encoder.model)  # then all processes must run the same number of passes, one at a time
    empty_passes = fsdp.count_max_passes(len(passes)) - len(passes) if sharded else 0
    caching = sharded or (encoder.recipe.batch.gradient_caching and len(passes) > 1)
    one_row = tokens.select(passes[-1][0][-1:])  # what an empty pass runs; it adds nothing
    with torch.set_grad_enabled(not caching):
        parts = [encoder.encode(tokens.select(rows), pass_seeds) for rows, pass_seeds in passes]
        for _ in range(empty_passes):
            encoder.encode(one_row)
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in passes]))).to(encoder.device)
    vectors = torch.cat(parts)[order]
    if caching:
        vectors = vectors.requires_grad_()
    loss = _compute_loss(encoder, vectors, own_rows, batch)
    if torch.isfinite(loss):
        (loss * weight).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        if caching:
            _backward_cached(encoder, tokens, passes, vectors)
        for _ in range(empty_passes):
            zero = encoder.encode(one_row).sum() * 0
            zero.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return float(loss.detach()), len(tokens.flat)


def _tokenize_rows(encoder: TrainableEncoder, batch: ContrastiveBatch, rows: list[int]) -> TokenizedTexts:
    """Token ids of some rows of a batch, counted over queries, passages and list prompts."""
    texts = [*batch.queries, *batch.passages, *batch.list_prompts]
    first_passage, first_list = len(batch.queries), len(batch.queries) + len(batch.passages)
    own_queries = [row for row in rows if row < first_passage]
    passages = [texts[row] for row in rows if first_passage <= row < first_list]
    list_prompts = [texts[row] for row in rows if row >= first_list]
    instructions = [batch.instructions[row] for row in own_queries] if batch.instructions else []
    return encoder.tokenize([texts[row] for row in own_queries], passages, list_prompts, instructions)


def _backward_cached(
    encoder: TrainableEncoder, tokens: TokenizedTexts, passes: list[SeededPass], vectors: Tensor
) -> None:
    assert vectors.grad is not None  # noqa: S101  # for the type checker: backward has just filled it
    for rows, seeds in passes:
        second_run = encoder.encode(tokens.select(rows), seeds)
        second_run.backward(vectors.grad[torch.from_numpy(rows).to(vectors.device)])  # type: ignore[no-untyped-call]  # untyped in torch


def _select_own_rows(batch: ContrastiveBatch) -> list[int]:
    """Rows (queries, passages, list prompts) of this process: every n-th query, with its passages and its list."""
    rank, processes, count = distributed.get_rank(), distributed.get_world_size(), len(batch.queries)
    queries = [row for row in range(count) if row % processes == rank]
    passages = [count + passage for passage, owner in enumerate(batch.owner) if owner % processes == rank]
    return queries + passages + [count + len(batch.owner) + row for row in queries if batch.list_prompts]


def _compute_loss(encoder: TrainableEncoder, vectors: Tensor, own_rows: list[int], batch: ContrastiveBatch) -> Tensor:
    sizes = [len(batch.queries), len(batch.passages), len(batch.list_prompts)]
    queries, passages, lists = torch.split(distributed.gather_vectors(vectors, own_rows, sum(sizes)), sizes)
    recipe, similarity = encoder.recipe, encoder.recipe.method.similarity
    loss, listwise = contrastive_loss(queries, passages, batch, recipe.contrastive, similarity), recipe.listwise
    if listwise is None:
        return loss
    return loss + listwise.weight * ranknet_loss(lists, passages, batch, listwise.temperature, similarity)
