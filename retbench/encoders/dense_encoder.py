"""The dense encoder: texts in, unit vectors out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.pooling import POOLINGS, narrowed
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.backbone import Backbone


class DenseEncoder(Protocol):
    """What search and training code against; nothing wider."""

    @property
    def spec(self) -> EncoderSpec:
        """Everything that decides a vector."""
        ...

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def kernel(self) -> str:
        """What computes attention, for the record."""
        ...

    def peak_throughput(self) -> float | None:
        """Tokens a second that the matrix products alone would allow; none where they are not ours to time."""
        ...

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit."""
        ...

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors of length one."""
        ...


@dataclass(frozen=True)
class BackboneEncoder:
    """Our own engine behind the protocol."""

    spec: EncoderSpec
    backbone: Backbone
    prompt_tokenizer: PromptTokenizer

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.backbone.dimension

    @property
    def kernel(self) -> str:
        """What computes attention, for the record."""
        return self.backbone.kernel

    def peak_throughput(self) -> float | None:
        """Tokens a second that the matrix products alone would allow."""
        return self.backbone.reach()

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors of length one."""
        return np.asarray(torch.nn.functional.normalize(self._pool_states(batch), dim=1).cpu().numpy())

    def _pool_states(self, batch: TokenizedTexts) -> torch.Tensor:
        flat, offsets = self.backbone.states(list(batch))
        if batch.pooling_starts is not None:
            flat, offsets = narrowed(flat, offsets, torch.from_numpy(batch.pooling_starts).to(flat.device))
        return POOLINGS[self.spec.method.pooling](flat, offsets)
