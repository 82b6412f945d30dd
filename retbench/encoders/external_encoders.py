"""Encoders over engines that are not ours: those that take our token ids, and those that take text.

A server of embeddings reads text and keeps its tokenizer to itself. Its "ids" here are the UTF-8 bytes of the text, so
that plan, store and resume work as for any other encoder; a limit of n tokens is one of 4n bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retbench.cards.method import Role
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.postprocessing import normalize_vectors
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts, fill_template
from retbench.engines.embeddings_client import EmbeddingsClient

BYTES_PER_TOKEN = 4


class TokenIdEngine(Protocol):
    """What takes token ids."""

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector a row of token ids."""
        ...


@dataclass(frozen=True)
class TokenIdEncoder:
    """Our wording, somebody else's forward pass and pooling."""

    spec: EncoderSpec
    engine: TokenIdEngine
    prompt_tokenizer: PromptTokenizer

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.engine.dimension

    @property
    def kernel(self) -> str:
        """What computes attention, for the record."""
        return f"{self.spec.engine}'s own"

    def peak_throughput(self) -> None:
        """Its matrix products are not ours to time."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, cut to the role's limit."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors of length one."""
        return normalize_vectors(self.engine.encode(list(batch)))


@dataclass(frozen=True)
class EndpointEncoder:
    """A server of embeddings."""

    spec: EncoderSpec
    client: EmbeddingsClient

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.client.get_dimension()

    @property
    def kernel(self) -> str:
        """What computes attention, for the record."""
        return "the server's own"

    def peak_throughput(self) -> None:
        """Its matrix products are not ours to time."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as UTF-8, cut to the role's limit between two characters."""
        limit, truncated, empty, pieces = BYTES_PER_TOKEN * self.spec.get_limit(role), 0, 0, []
        for text in texts:
            empty += not text.strip()
            whole = fill_template(self.spec.method, text, role, self.spec.instruction).encode()
            truncated += len(whole) > limit
            kept = whole[:limit].decode(errors="ignore").encode() or b" "
            pieces.append(np.frombuffer(kept, dtype=np.uint8).astype(np.int32))
        offsets = np.concatenate(([0], np.cumsum([len(piece) for piece in pieces])))
        return TokenizedTexts(np.concatenate(pieces), offsets, truncated, empty)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of texts as float32 vectors of length one."""
        return normalize_vectors(self.client.embed_texts([bytes(row.astype(np.uint8)).decode() for row in batch]))
