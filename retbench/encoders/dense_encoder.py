"""The dense encoder: turns texts into vectors, of length one unless the method compares by dot product."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.encoders.batch_plan import estimate_shard_tokens
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.pooling import POOLINGS, drop_leading_tokens, scale_for_similarity
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.encoders.text_encoder import TextEncoder
from retbench.engines.backbone import Backbone
from retbench.engines.memory import get_thread_count
from retbench.engines.published_head import PublishedHead


class DenseEncoder(TextEncoder, Protocol):
    """An encoder that gives one vector for each text."""

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors, ready for the method's similarity."""
        ...


@dataclass(frozen=True)
class BackboneEncoder:
    """An encoder with a backbone in this process: engine `transformers`."""

    spec: EncoderSpec
    backbone: Backbone
    prompt_tokenizer: PromptTokenizer
    head: PublishedHead | None = field(default=None, kw_only=True)  # the modules of a published embedder

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return (self.head and self.head.dimension) or self.backbone.dimension

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return self.backbone.kernel

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record."""
        return self.backbone.computed_dtype

    @property
    def shard_tokens(self) -> int | None:
        """Tokens of about half a minute of work, estimated from the linear layers."""
        device = self.backbone.device.type
        return estimate_shard_tokens(self.backbone.flops_per_token, device, self.computed_dtype, get_thread_count())

    def peak_throughput(self) -> float | None:
        """Tokens per second if only the matrix products took time."""
        return self.backbone.peak_throughput()

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """Encode one batch of token ids as float32 vectors, ready for the method's similarity."""
        pooled = self._pool(batch, *self.backbone.compute_states(list(batch)))
        return np.asarray(scale_for_similarity(pooled, self.spec.method.similarity).cpu().numpy())

    def _pool(self, batch: TokenizedTexts, flat: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if batch.pooling_starts is not None:
            flat, offsets = drop_leading_tokens(flat, offsets, torch.from_numpy(batch.pooling_starts).to(flat.device))
        if self.head:
            return self.head.transform(POOLINGS[self.head.pooling](flat, offsets))
        return POOLINGS[self.spec.method.pooling](flat, offsets)
