"""The gradient of one group, whatever its size: forward in passes of bounded size, over one or many processes.

Without caching, all passes are kept and one backward goes through them. With caching (GradCache, Gao et al. 2021) the
vectors are made without gradients, the loss gives each vector its gradient, and every pass is run again to carry it
into the weights: one pass in memory at a time, the same sum. Each pass has its own seed, so that the second time drops
what the first one dropped.

Processes share a group by its queries. Every process sees all vectors, computes the whole loss and carries back only
its own part; the sum over the processes is then the gradient of the whole group, as one process would compute it. Where
they share the weights too, caching is always on (see `sharding.py`).
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.training import distributed, fsdp
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.losses import contrastive_loss, ranknet_loss
from retbench.training.train_forward import TrainableEncoder, split_into_passes


def backward_batch(
    trainee: TrainableEncoder, group: ContrastiveBatch, weight: float, seed: tuple[int, ...]
) -> tuple[float, int]:
    """Add the group's gradient times `weight` to the weights; the loss, and the tokens run here."""
    own = _select_own_rows(group)
    texts, ends = [*group.queries, *group.passages, *group.list_prompts], len(group.queries) + len(group.passages)
    queries = [texts[row] for row in own if row < len(group.queries)]
    passages = [texts[row] for row in own if len(group.queries) <= row < ends]
    tokens = trainee.tokenize(queries, passages, [texts[row] for row in own if row >= ends])
    plan = [
        (part, _derive_seed((*seed, distributed.get_rank(), number)))
        for number, part in enumerate(split_into_passes(tokens.lengths, trainee.recipe.batch.max_tokens))
    ]
    shared = fsdp.is_sharded(trainee.model)  # then one pass is run at a time, as often as anybody needs
    empty = fsdp.count_max_passes(len(plan)) - len(plan) if shared else 0
    caching = shared or (trainee.recipe.batch.gradient_caching and len(plan) > 1)
    with torch.set_grad_enabled(not caching):
        parts = [trainee.encode(tokens.select(part), pass_seed) for part, pass_seed in plan]
        for _ in range(empty):
            trainee.encode(tokens.select(plan[-1][0][-1:]), 0)
    back = torch.from_numpy(np.argsort(np.concatenate([part for part, _ in plan]))).to(trainee.device)
    vectors = torch.cat(parts)[back]
    if caching:
        vectors = vectors.requires_grad_()
    value = _compute_loss(trainee, vectors, own, group)
    if torch.isfinite(value):
        (value * weight).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        if caching:
            _backward_cached(trainee, tokens, plan, vectors)
        for _ in range(empty):
            nothing = trainee.encode(tokens.select(plan[-1][0][-1:]), 0).sum() * 0
            nothing.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return float(value.detach()), len(tokens.flat)


def _backward_cached(
    trainee: TrainableEncoder, tokens: TokenizedTexts, plan: list[tuple[np.ndarray, int]], vectors: Tensor
) -> None:
    assert vectors.grad is not None  # noqa: S101  # for the type checker: backward has just filled it
    for part, seed in plan:
        once_more = trainee.encode(tokens.select(part), seed)
        once_more.backward(vectors.grad[torch.from_numpy(part).to(vectors.device)])  # type: ignore[no-untyped-call]  # untyped in torch


def _select_own_rows(group: ContrastiveBatch) -> list[int]:
    """Rows (queries, passages, lists) of this process: every so-many-th query, and what it brought."""
    mine, count = distributed.get_rank(), len(group.queries)
    queries = [row for row in range(count) if row % distributed.get_world_size() == mine]
    passages = [count + p for p, owner in enumerate(group.owner) if owner % distributed.get_world_size() == mine]
    return queries + passages + [count + len(group.owner) + row for row in queries if group.list_prompts]


def _compute_loss(trainee: TrainableEncoder, vectors: Tensor, own: list[int], group: ContrastiveBatch) -> Tensor:
    sizes = [len(group.queries), len(group.passages), len(group.list_prompts)]
    queries, passages, lists = torch.split(distributed.gather_vectors(vectors, own, sum(sizes)), sizes)
    value, settings = contrastive_loss(queries, passages, group, trainee.recipe.contrastive), trainee.recipe.listwise
    if settings is None:
        return value
    return value + settings.weight * ranknet_loss(lists, passages, group, settings.temperature)


def _derive_seed(parts: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())
