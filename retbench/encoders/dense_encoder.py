"""The dense encoder: turns texts into vectors, of length one unless the method compares by dot product."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from retbench.encoders.backbone_base import BackboneEncoderBase
from retbench.encoders.pooling import POOLINGS, drop_leading_tokens, scale_for_similarity
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.text_encoder import TextEncoder
from retbench.engines.device import start_copy_to_host
from retbench.engines.published_head import PublishedHead


class DenseEncoder(TextEncoder, Protocol):
    """An encoder that gives one vector for each text."""

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors, ready for the method's similarity."""
        ...


@dataclass(frozen=True)
class BackboneEncoder(BackboneEncoderBase):
    """One vector for each text, pooled from the states of a backbone."""

    head: PublishedHead | None = field(default=None, kw_only=True)  # the modules of a published embedder

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return (self.head and self.head.dimension) or self.backbone.dimension

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """Encode one batch of token ids as float32 vectors, ready for the method's similarity."""
        return self.start_encoding(batch)()

    def start_encoding(self, batch: TokenizedTexts) -> Callable[[], np.ndarray]:
        """Begin to encode one batch; the returned function waits for its vectors."""
        pooled = self._pool(batch, *self.backbone.compute_states(list(batch)))
        return start_copy_to_host(scale_for_similarity(pooled, self.spec.method.similarity))

    def _pool(self, batch: TokenizedTexts, flat: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if batch.pooling_starts is not None:
            flat, offsets = drop_leading_tokens(flat, offsets, torch.from_numpy(batch.pooling_starts).to(flat.device))
        if self.head:
            return self.head.transform(POOLINGS[self.head.pooling](flat, offsets))
        return POOLINGS[self.spec.method.pooling](flat, offsets)
