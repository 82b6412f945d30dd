"""Encoders with an external engine: sentence-transformers and vLLM take our token ids, an endpoint takes text.

The tokenizer of an embedding server is not known here. Its "token ids" are the UTF-8 bytes of the text, so that batch
plan, shard store and resume work as for other encoders. A limit of n tokens becomes 4n bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retbench.cards.method import Role, Similarity
from retbench.encoders.batch_plan import SHARD_SECONDS
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.postprocessing import normalize_vectors
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts, fill_template
from retbench.engines.embeddings_client import BYTES_PER_TOKEN, EmbeddingsClient, EndpointUsage

USUAL_TOKENS_PER_SECOND = 1000  # of a server that gets one request after the other


def _scale_vectors(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Vectors whose dot product is the similarity: of length one for `cosine`, as sent for `dot`."""
    return normalize_vectors(vectors) if similarity == "cosine" else vectors.astype(np.float32)


class TokenIdEngine(Protocol):
    """An engine that encodes token ids."""

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype of the loaded weights."""
        ...

    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector per row of token ids."""
        ...


@dataclass(frozen=True)
class TokenIdEncoder:
    """Our prompts and token ids, with the forward pass and pooling of an external engine."""

    spec: EncoderSpec
    engine: TokenIdEngine
    prompt_tokenizer: PromptTokenizer

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.engine.dimension

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return f"{self.spec.engine}'s own"

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record."""
        return self.engine.dtype

    @property
    def shard_tokens(self) -> None:
        """Not known: the engine computes the model itself."""

    def peak_throughput(self) -> None:
        """Not known: the engine computes its matrix products itself."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of token ids as float32 vectors, ready for the method's similarity."""
        return _scale_vectors(self.engine.encode(list(batch)), self.spec.method.similarity)


@dataclass(frozen=True)
class EndpointEncoder:
    """An embedding server behind an endpoint."""

    spec: EncoderSpec
    client: EmbeddingsClient
    role: Role = "document"  # some servers ask for it
    usage: EndpointUsage | None = None  # counts the texts of this encoder apart

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.client.get_dimension()

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return "the server's own"

    @property
    def computed_dtype(self) -> str:
        """Not known: the server does not say."""
        return "unknown"

    @property
    def shard_tokens(self) -> int:
        """The bytes of about half a minute of work."""
        return SHARD_SECONDS * BYTES_PER_TOKEN * USUAL_TOKENS_PER_SECOND

    def peak_throughput(self) -> None:
        """Not known: the engine computes its matrix products itself."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as UTF-8 bytes, truncated to the limit of the role at a character boundary."""
        limit, truncated, empty, rows = BYTES_PER_TOKEN * self.spec.get_limit(role), 0, 0, []
        for text in texts:
            empty += not text.strip()
            encoded = fill_template(self.spec.method, text, role, self.spec.instruction).encode()
            truncated += len(encoded) > limit
            shortened = encoded[:limit].decode(errors="ignore").encode() or b" "
            rows.append(np.frombuffer(shortened, dtype=np.uint8).astype(np.int32))
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        return TokenizedTexts(np.concatenate(rows), offsets, truncated, empty)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """One batch of texts as float32 vectors, ready for the method's similarity."""
        texts = [bytes(row.astype(np.uint8)).decode() for row in batch]
        vectors = self.client.embed_texts(texts, self.role, self.usage)
        return _scale_vectors(vectors, self.spec.method.similarity)
