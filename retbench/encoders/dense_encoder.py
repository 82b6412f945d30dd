"""The dense encoder: turns texts into normalized vectors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.pooling import POOLINGS, drop_leading_tokens
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.backbone import Backbone


class DenseEncoder(Protocol):
    """The interface of all encoders that search uses."""

    @property
    def spec(self) -> EncoderSpec:
        """All settings that determine a vector."""
        ...

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        ...

    def peak_throughput(self) -> float | None:
    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record; `unknown` behind a server."""
        ...

        """Tokens per second if only the matrix products took time; None if it cannot be measured."""
        ...

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        ...

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors of length one."""
        ...


@dataclass(frozen=True)
class BackboneEncoder:
    """An encoder with a backbone in this process: engine `transformers`."""

    spec: EncoderSpec
    backbone: Backbone
    prompt_tokenizer: PromptTokenizer

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.backbone.dimension

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return self.backbone.kernel

    def peak_throughput(self) -> float | None:
        """Tokens per second if only the matrix products took time."""
    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record."""
        return str(self.backbone.model.dtype).removeprefix("torch.")

        return self.backbone.peak_throughput()

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """Encode one batch of token ids as float32 vectors of length one."""
        pooled = self._pool(batch, *self.backbone.compute_states(list(batch)))
        return np.asarray(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())

    def _pool(self, batch: TokenizedTexts, flat: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if batch.pooling_starts is not None:
            flat, offsets = drop_leading_tokens(flat, offsets, torch.from_numpy(batch.pooling_starts).to(flat.device))
        return POOLINGS[self.spec.method.pooling](flat, offsets)
