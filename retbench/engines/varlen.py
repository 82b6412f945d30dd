"""Packed batches without padding for models of transformers, on GPUs with a variable-length attention kernel.

The rows of a batch are concatenated to one long row. Positions restart for each text, and the attention kernel gets the
offsets of the texts. The kernel is registered with transformers under a name. The offsets are in a context variable, so
that the models do not have to pass them on.
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

from retbench.engines.device import copy_to_device
from retbench.engines.packed_encoder import number_positions_after_padding

ATTENTION_NAME = "retbench_varlen"
ROBERTA_FAMILIES = {"roberta", "xlm-roberta", "camembert"}  # whose positions begin after the padding token's id
SUPPORTED_FAMILIES = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "olmo2", "gpt_neox", "bert",
    *ROBERTA_FAMILIES,
}  # fmt: skip
SUPPORTED_ROPES = {"default", "linear", "llama3", "yarn"}  # whose angles depend only on the position
MAX_HEAD_WIDTH, HEAD_WIDTH_STEP = 256, 8  # of an attention head, as the kernel requires


@dataclass
class PackedBatch:
    """The offsets of a packed batch: text i is `[offsets[i]:offsets[i + 1]]` of the packed row."""

    offsets: Tensor  # int32, on the device
    lengths: np.ndarray
    causal: bool
    kernel_calls: int = field(default=0, init=False)  # number of layers that called the kernel

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max())


AttentionKernel = Callable[
    [Tensor, Tensor, Tensor, PackedBatch, float], Tensor
]  # queries, keys, values (tokens x heads x width), batch, scale
CURRENT_BATCH: ContextVar[PackedBatch | None] = ContextVar("current packed batch", default=None)


def run_flash_attention(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """PyTorch's flash attention over texts of different lengths. Supports grouped-query attention."""
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        batch.offsets,
        batch.offsets,
        batch.max_length,
        batch.max_length,
        0.0,
        batch.causal,
        False,
        scale=scale,
    )[0]
    return attended


@cache
def find_kernel(device: torch.device, dtype: torch.dtype, width: int) -> AttentionKernel | None:
    """The kernel if it runs with this device, dtype and head width, else None. It is tried once."""
    is_half_precision = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not is_half_precision or width > MAX_HEAD_WIDTH or width % HEAD_WIDTH_STEP:
        return None
    probe = PackedBatch(torch.tensor([0, 1, 3], dtype=torch.int32, device=device), np.array([1, 2]), causal=True)
    heads = [torch.zeros(3, count, width, dtype=dtype, device=device) for count in (2, 1, 1)]
    try:
        with torch.inference_mode():
            run_flash_attention(heads[0], heads[1], heads[2], probe, 1.0)
            torch.cuda.synchronize(device)
    except (RuntimeError, TypeError, AttributeError):  # the GPU is too old, or torch has another kernel
        return None
    return run_flash_attention


def find_model_kernel(model: Any) -> AttentionKernel | None:
    """The kernel for packed batches of this model, or None if its rows must be padded."""
    config = model.config
    if (
        config.model_type not in SUPPORTED_FAMILIES
        or config._attn_implementation != "sdpa"
        or not _has_fixed_positions(model)
    ):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return find_kernel(model.device, model.dtype, int(width))


def _has_fixed_positions(model: Any) -> bool:
    """Whether positions do not depend on other texts, and attention scores are not soft-capped."""
    rope_types = [part.rope_type for part in model.modules() if hasattr(part, "rope_type")]
    kinds = {kind for entry in rope_types for kind in (entry.values() if isinstance(entry, dict) else [entry])}
    return kinds <= SUPPORTED_ROPES and not getattr(model.config, "attn_logit_softcapping", None)


def fits_attention_window(model: Any, rows: Sequence[np.ndarray]) -> bool:
    """Whether all texts fit into the attention window of the model: the kernel supports no window."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    window = None if kinds and "sliding_attention" not in kinds else getattr(config, "sliding_window", None)
    return window is None or max(map(len, rows)) <= window


def run_packed(model: Any, rows: Sequence[np.ndarray], causal: bool, **options: Any) -> Any:
    """Run the model on the packed rows."""
    lengths = np.array([len(row) for row in rows])
    offsets = np.cumsum([0, *lengths])
    ids, position_ids, ends = (
        copy_to_device(torch.from_numpy(part), model.device)
        for part in (np.concatenate(rows).astype(np.int64), number_positions(model, rows), offsets.astype(np.int32))
    )
    batch = PackedBatch(ends, lengths, causal)
    with _use_packed_attention(model, batch):
        output = model(input_ids=ids[None], position_ids=position_ids[None], **options)
    if batch.kernel_calls != model.config.num_hidden_layers:
        raise RuntimeError(
            f"{batch.kernel_calls} of {model.config.num_hidden_layers} layers used the kernel for packed batches"
        )
    return output


def number_positions(model: Any, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The position of each token in its own text, as the model numbers them."""
    if model.config.model_type in ROBERTA_FAMILIES:
        return number_positions_after_padding(rows, int(model.config.pad_token_id)).numpy()
    lengths = np.array([len(row) for row in rows])
    ends = lengths.cumsum()
    return np.asarray(np.arange(ends[-1]) - np.repeat(ends - lengths, lengths))


@contextmanager
def _use_packed_attention(model: Any, batch: PackedBatch) -> Iterator[None]:
    """Use the packed attention kernel for this model and batch."""
    previous, token = model.config._attn_implementation, CURRENT_BATCH.set(batch)
    model.config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        model.config._attn_implementation = previous
        CURRENT_BATCH.reset(token)


def compute_packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: from 1 x heads x tokens x width to 1 x tokens x heads x width."""
    batch = CURRENT_BATCH.get()
    if batch is None:
        raise RuntimeError("attention over packed texts outside of run_packed")
    batch.kernel_calls += 1
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    packed = [
        part[0].transpose(0, 1).to(dtype) for part in (query, key, value)
    ]  # as autocast does in torch's attention
    kernel = find_kernel(query.device, dtype, query.shape[-1])
    if kernel is None:
        raise RuntimeError(f"no attention kernel for packed batches with heads of {query.shape[-1]} in {dtype}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return kernel(packed[0], packed[1], packed[2], batch, scale)[None], None


def build_no_mask(*_: Any, **__: Any) -> None:
    """Returns None: the kernel needs no mask."""


AttentionInterface.register(ATTENTION_NAME, compute_packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, build_no_mask)
