"""Pooling: the token states of each text become one vector. Texts are separated by offsets."""

from collections.abc import Callable

import torch
from torch import Tensor

from retbench.cards.method import Pooling, Similarity


def pool_last(flat: Tensor, offsets: Tensor) -> Tensor:
    """The state of the last token of each text."""
    return flat[offsets[1:] - 1].float()


def pool_first(flat: Tensor, offsets: Tensor) -> Tensor:
    """The state of the first token of each text."""
    return flat[offsets[:-1]].float()


def pool_mean(flat: Tensor, offsets: Tensor) -> Tensor:
    """The mean over the tokens of each text, summed in float32."""
    return _sum_per_text(flat.float(), offsets) / offsets.diff()[:, None]


def pool_weighted_mean(flat: Tensor, offsets: Tensor) -> Tensor:
    """The weighted mean of SGPT: the i-th token has weight i, because later causal states have more context."""
    numbers = torch.arange(1, len(flat) + 1, device=flat.device)
    weights = (numbers - _repeat_per_token(offsets[:-1], offsets, len(flat))).float()
    return _sum_per_text(flat.float() * weights[:, None], offsets) / _sum_per_text(weights[:, None], offsets)


def _repeat_per_token(values: Tensor, offsets: Tensor, tokens: int) -> Tensor:
    """Repeat the value of each text for each of its tokens. Without `tokens` a GPU would be asked for their number."""
    return torch.repeat_interleave(values, offsets.diff(), output_size=tokens)


def _sum_per_text(flat: Tensor, offsets: Tensor) -> Tensor:
    texts = len(offsets) - 1
    if flat.device.type != "cpu":
        return _sum_in_fixed_order(flat, offsets)
    sums = torch.zeros((texts, flat.shape[1]), dtype=torch.float32)
    return sums.index_add_(0, _repeat_per_token(torch.arange(texts), offsets, len(flat)), flat)


def _sum_in_fixed_order(flat: Tensor, offsets: Tensor) -> Tensor:
    """The same sums on a GPU in a fixed order: `index_add_` on a GPU adds in a random order of threads."""
    return torch.segment_reduce(flat.float(), "sum", offsets=offsets, axis=0)


def drop_leading_tokens(flat: Tensor, offsets: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """States and offsets without the tokens before `starts` of each text."""
    first_kept = _repeat_per_token(offsets[:-1] + starts, offsets, len(flat))
    is_kept = torch.arange(len(flat), device=flat.device) >= first_kept
    lengths = offsets.diff() - starts
    return flat[is_kept], torch.cat((offsets[:1], lengths.cumsum(0)))


def scale_for_similarity(vectors: Tensor, similarity: Similarity) -> Tensor:
    """Vectors whose dot product is the similarity: scaled to length one for `cosine`, unchanged for `dot`."""
    return torch.nn.functional.normalize(vectors, dim=1) if similarity == "cosine" else vectors


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "last": pool_last,
    "first": pool_first,
    "mean": pool_mean,
    "weighted": pool_weighted_mean,
}
