"""The attention mask of llm-ql: causal, and closed at the bottleneck (Attention Stop).

It is added to the attention scores: 0 where a position may look, minus infinity where it may not. Every kernel takes
that form. A boolean mask is not enough: the eager kernel, which Gemma 2 needs, would add its ones and hide nothing.
Layers with a sliding window get a mask of their own, because transformers takes a given mask as it is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retbench.errors import UsageError

Masks = Tensor | dict[str, Tensor]  # one for all layers, or one per type of layer
BuildMasks = Callable[[Tensor, Sequence[int]], Masks]  # from the rows' lengths and bottlenecks

LAYER_TYPES = ("full_attention", "sliding_attention")  # the names of transformers
PROBE_LENGTH = 8
LEAK_TOLERANCE = 1e-3  # of the largest change of a logit; a mask that holds leaves rounding alone


def build_attention_mask(
    lengths: Tensor, bottlenecks: Sequence[int], stop: bool, window: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The additive mask, [row, 1, from, to]. A padding position attends to itself, or its softmax would be NaN."""
    size = int(lengths.max())
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    if window is not None:
        causal = causal.triu(1 - window)
    allowed = causal.repeat(len(lengths), 1, 1)
    for row, (length, bottleneck) in enumerate(zip(lengths.tolist(), bottlenecks, strict=True)):
        if stop:
            allowed[row, bottleneck + 1 :, :bottleneck] = False
        allowed[row, :, length:] = False
    allowed |= torch.eye(size, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -math.inf)[:, None]


def build_model_masks(
    config: Any, lengths: Tensor, bottlenecks: Sequence[int], stop: bool, dtype: torch.dtype, device: torch.device
) -> Masks:
    """The mask in the form that a model takes."""

    def build(window: int | None) -> Tensor:
        return build_attention_mask(lengths, bottlenecks, stop, window, dtype).to(device)

    text_config = config.get_text_config()
    types, window = set(getattr(text_config, "layer_types", None) or ()), getattr(text_config, "sliding_window", None)
    if unknown := types - set(LAYER_TYPES):
        raise UsageError(
            f"llm-ql cannot mask layers of type {', '.join(sorted(unknown))}", "use a model with plain attention layers"
        )
    if "sliding_attention" in types:
        return {"full_attention": build(None), "sliding_attention": build(window)}
    return build(None if types else window)  # Mistral and Phi 3 name no types: the window holds for all layers


@torch.no_grad()
def check_mask_is_obeyed(model: Any, run_model: Callable[[Tensor, Masks], Tensor], build_masks: BuildMasks) -> None:
    """Refuse a model whose logits change with a token that the mask hides, as recurrent layers do.

    Each token of a short row is changed once. Nobody may look across the middle of the row or ahead.
    """
    ids = torch.arange(1, PROBE_LENGTH + 1).repeat(PROBE_LENGTH + 1, 1)
    ids[1:] += PROBE_LENGTH * torch.eye(PROBE_LENGTH, dtype=torch.long)  # row 0 stays as it is
    masks, middle = build_masks(torch.full((len(ids),), PROBE_LENGTH), [0] * len(ids)), PROBE_LENGTH // 2
    for mask in masks.values() if isinstance(masks, dict) else [masks]:
        mask[:, :, middle:, :middle] = -math.inf
    was_training = model.training
    model.eval()
    logits = run_model(ids, masks).float()
    model.train(was_training)
    changes = (logits[1:] - logits[:1]).abs().amax(-1).cpu()  # [changed token, position]
    place = torch.arange(PROBE_LENGTH)
    is_hidden = (place[:, None] > place) | (place[:, None] < middle) & (place >= middle)
    if float(changes[is_hidden].max()) > LEAK_TOLERANCE * float(changes.max()):
        raise UsageError(
            "the model does not obey llm-ql's attention mask: its predictions change with tokens that are hidden",
            "use a decoder with plain attention layers",
        )
