"""Texts packed without padding through transformers' own models, where a GPU has a kernel that keeps them apart.

The rows of a batch lie one after the other as one long row, positions begin anew with each, and attention is computed
by a kernel that is told where each text ends. transformers calls it under a name registered here; what every layer must
know of the batch lies in a context variable, so that no model has to pass it on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "retbench_varlen"
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "olmo2", "gpt_neox", "bert"}
ROPES = {"default", "linear", "llama3", "yarn"}  # whose angles follow the position alone
WIDEST, STEP = 256, 8  # of a head, for the kernel


@dataclass
class Batch:
    """Text i is `[ends[i]:ends[i + 1]]` of the packed row."""

    ends: Tensor  # int32, on the device
    longest: int
    causal: bool
    layers: int = field(default=0, init=False)  # that asked for attention


Kernel = Callable[[Tensor, Tensor, Tensor, Batch, float], Tensor]  # tokens x heads x width each, and the scale
CURRENT: ContextVar[Batch] = ContextVar("the batch that is being read")


def flash(query: Tensor, key: Tensor, value: Tensor, batch: Batch, scale: float) -> Tensor:
    """PyTorch's own flash attention over texts of any lengths; heads may share keys."""
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, batch.ends, batch.ends, batch.longest, batch.longest, 0.0, batch.causal, False, scale=scale
    )[0]
    return attended


@cache
def available(device: torch.device, dtype: torch.dtype, width: int) -> Kernel | None:
    """The kernel, where it runs with this precision and heads of this width: it is tried once."""
    short = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not short or width > WIDEST or width % STEP:
        return None
    tried = Batch(torch.tensor([0, 1, 3], dtype=torch.int32, device=device), 2, causal=True)
    heads = [torch.zeros(3, count, width, dtype=dtype, device=device) for count in (2, 1, 1)]
    try:
        with torch.inference_mode():
            flash(heads[0], heads[1], heads[2], tried, 1.0)
            torch.cuda.synchronize(device)
    except (RuntimeError, TypeError, AttributeError):  # too old a GPU, or a torch whose kernel is another
        return None
    return flash


def kernel(model: Any) -> Kernel | None:
    """What computes packed attention for this model; none where padded rows are right."""
    config = model.config
    if config.model_type not in FAMILIES or config._attn_implementation != "sdpa" or not _plain(model):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return available(model.device, model.dtype, int(width))


def _plain(model: Any) -> bool:
    """Whether positions are angles that no other text changes, or are looked up, and scores have no cap."""
    told = [part.rope_type for part in model.modules() if hasattr(part, "rope_type")]
    kinds = {kind for one in told for kind in (one.values() if isinstance(one, dict) else [one])}
    return kinds <= ROPES and not getattr(model.config, "attn_logit_softcapping", None)


def fits(model: Any, rows: Sequence[np.ndarray]) -> bool:
    """Whether every layer sees the whole of every text: the kernel is told of no window."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    window = None if kinds and "sliding_attention" not in kinds else getattr(config, "sliding_window", None)
    return window is None or max(map(len, rows)) <= window


def run(model: Any, rows: Sequence[np.ndarray], causal: bool, **wanted: Any) -> Any:
    """The model's output for the packed rows."""
    here = model.device
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(here)
    positions = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows]))[None].to(here)
    ends = torch.tensor(np.cumsum([0, *map(len, rows)]), dtype=torch.int32).to(here)
    batch = Batch(ends, max(map(len, rows)), causal)
    with _reading(model, batch):
        output = model(input_ids=ids, position_ids=positions, **wanted)
    if batch.layers != model.config.num_hidden_layers:
        raise RuntimeError(f"{batch.layers} of {model.config.num_hidden_layers} layers kept the packed texts apart")
    return output


@contextmanager
def _reading(model: Any, batch: Batch) -> Iterator[None]:
    """The model's attention is ours meanwhile."""
    usual, token = model.config._attn_implementation, CURRENT.set(batch)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = usual
        CURRENT.reset(token)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: 1 x heads x tokens x width in, 1 x tokens x heads x width out."""
    batch = CURRENT.get()
    batch.layers += 1
    packed = [part[0].transpose(0, 1) for part in (query, key, value)]
    compute = available(query.device, query.dtype, query.shape[-1])
    if compute is None:
        raise RuntimeError(f"no kernel for packed texts with heads of {query.shape[-1]} in {query.dtype}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return compute(packed[0], packed[1], packed[2], batch, scale)[None], None


def no_mask(*_: Any, **__: Any) -> None:
    """The kernel needs none."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)
