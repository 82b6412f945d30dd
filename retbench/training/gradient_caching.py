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

from retbench.encoders.prompt_tokenizer import Tokens
from retbench.training import distributed, fsdp
from retbench.training.contrastive_batches import Group
from retbench.training.losses import loss, ranknet
from retbench.training.train_forward import Trainee, passes


def backward(trainee: Trainee, group: Group, weight: float, seed: tuple[int, ...]) -> tuple[float, int]:
    """Add the group's gradient times `weight` to the weights; the loss, and the tokens run here."""
    own = _own_rows(group)
    texts, ends = [*group.queries, *group.passages, *group.lists], len(group.queries) + len(group.passages)
    queries = [texts[row] for row in own if row < len(group.queries)]
    passages = [texts[row] for row in own if len(group.queries) <= row < ends]
    tokens = trainee.tokens(queries, passages, [texts[row] for row in own if row >= ends])
    plan = [
        (part, _seed((*seed, distributed.rank(), number)))
        for number, part in enumerate(passes(tokens.lengths, trainee.recipe.batch.tokens))
    ]
    shared = fsdp.is_shared(trainee.model)  # then one pass is run at a time, as often as anybody needs
    empty = fsdp.most_passes(len(plan)) - len(plan) if shared else 0
    caching = shared or (trainee.recipe.batch.caching and len(plan) > 1)
    with torch.set_grad_enabled(not caching):
        parts = [trainee.vectors(tokens.take(part), pass_seed) for part, pass_seed in plan]
        for _ in range(empty):
            trainee.vectors(tokens.take(plan[-1][0][-1:]), 0)
    back = torch.from_numpy(np.argsort(np.concatenate([part for part, _ in plan]))).to(trainee.device)
    vectors = torch.cat(parts)[back]
    if caching:
        vectors = vectors.requires_grad_()
    value = _whole_loss(trainee, vectors, own, group)
    if torch.isfinite(value):
        (value * weight).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        if caching:
            _again(trainee, tokens, plan, vectors)
        for _ in range(empty):
            nothing = trainee.vectors(tokens.take(plan[-1][0][-1:]), 0).sum() * 0
            nothing.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return float(value.detach()), len(tokens.flat)


def _again(trainee: Trainee, tokens: Tokens, plan: list[tuple[np.ndarray, int]], vectors: Tensor) -> None:
    assert vectors.grad is not None  # noqa: S101  # for the type checker: backward has just filled it
    for part, seed in plan:
        once_more = trainee.vectors(tokens.take(part), seed)
        once_more.backward(vectors.grad[torch.from_numpy(part).to(vectors.device)])  # type: ignore[no-untyped-call]  # untyped in torch


def _own_rows(group: Group) -> list[int]:
    """Rows (queries, passages, lists) of this process: every so-many-th query, and what it brought."""
    mine, count = distributed.rank(), len(group.queries)
    queries = [row for row in range(count) if row % distributed.world() == mine]
    passages = [count + p for p, owner in enumerate(group.owner) if owner % distributed.world() == mine]
    return queries + passages + [count + len(group.owner) + row for row in queries if group.lists]


def _whole_loss(trainee: Trainee, vectors: Tensor, own: list[int], group: Group) -> Tensor:
    sizes = [len(group.queries), len(group.passages), len(group.lists)]
    queries, passages, lists = torch.split(distributed.gathered(vectors, own, sum(sizes)), sizes)
    value, settings = loss(queries, passages, group, trainee.recipe.contrast), trainee.recipe.lists
    if settings is None:
        return value
    return value + settings.weight * ranknet(lists, passages, group, settings.temperature)


def _seed(parts: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())
