"""What all encoders share: texts in, and out of each text a vector, several vectors, or weighted terms."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from retbench.cards.method import Role, VectorKind
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.store.shard_store import VectorBlock
from retbench.store.vector_formats import VECTOR_FORMATS, VectorDtype, compute_row_bytes

OFFSET_BYTES = ROW_BYTES = np.dtype(np.int64).itemsize
TERM_BYTES = np.dtype(np.int32).itemsize + np.dtype(np.float32).itemsize
USUAL_TERMS_PER_TOKEN = 2  # of a SPLADE document


class RaggedVectors(NamedTuple):
    """Texts with different numbers of vectors or terms; the fields are those of a `VectorBlock`."""

    vectors: np.ndarray
    offsets: np.ndarray
    terms: np.ndarray | None = None

    @staticmethod
    def stack(rows: Sequence[np.ndarray], terms: Sequence[np.ndarray] | None = None) -> "RaggedVectors":
        """Join the vectors (or the weights, with their terms) of one text after the other."""
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        return RaggedVectors(np.concatenate(rows), offsets, None if terms is None else np.concatenate(terms))


EncodedTexts = np.ndarray | RaggedVectors  # one row for each text, or several


class TextEncoder(Protocol):
    """The interface of all encoders that search uses."""

    @property
    def spec(self) -> EncoderSpec:
        """All settings that determine a vector."""
        ...

    @property
    def dimension(self) -> int:
        """Width of a vector; for sparse vectors the size of the vocabulary."""
        ...

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        ...

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record; `unknown` behind a server."""
        ...

    @property
    def shard_tokens(self) -> int | None:
        """Tokens of about half a minute of work, estimated; None if not known."""
        ...

    def peak_throughput(self) -> float | None:
        """Tokens per second if only the matrix products took time; None if it cannot be measured."""
        ...

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        ...

    def encode(self, batch: TokenizedTexts) -> EncodedTexts:
        """One batch of token ids in float32."""
        ...


def find_bad_text(encoded: EncodedTexts) -> int | None:
    """Find the first text that cannot be ranked; None if there is none.

    That is one with a zero, NaN or infinite vector, or without any; weighted terms must only be finite: a text may
    have none.
    """
    if not isinstance(encoded, RaggedVectors):
        bad = np.flatnonzero(~(np.isfinite(encoded).all(axis=1) & encoded.any(axis=1)))
        return int(bad[0]) if len(bad) else None
    finite = np.isfinite(encoded.vectors)
    if encoded.terms is None:
        empty = np.flatnonzero(np.diff(encoded.offsets) == 0)
        wrong = np.flatnonzero(~(finite.all(axis=1) & encoded.vectors.any(axis=1)))
    else:
        empty, wrong = np.array([], dtype=np.int64), np.flatnonzero(~finite)
    texts = np.concatenate((empty, np.searchsorted(encoded.offsets, wrong, side="right") - 1))
    return int(texts.min()) if len(texts) else None


def join_parts(rows: np.ndarray, parts: Sequence[EncodedTexts]) -> VectorBlock:
    """Join the encoded batches of a shard."""
    ragged = [part for part in parts if isinstance(part, RaggedVectors)]
    if not ragged:
        return VectorBlock(rows, np.concatenate([np.asarray(part) for part in parts]))
    lengths = np.concatenate([np.diff(part.offsets) for part in ragged])
    terms = [part.terms for part in ragged if part.terms is not None]
    return VectorBlock(
        rows,
        np.concatenate([part.vectors for part in ragged]),
        np.concatenate(([0], np.cumsum(lengths))),
        np.concatenate(terms) if terms else None,
    )


def estimate_stored_bytes(kind: VectorKind, dimension: int, vector_dtype: VectorDtype, texts: int, tokens: int) -> int:
    """Estimate the bytes on disk of some texts; exact for dense vectors."""
    if kind == "dense":
        return texts * compute_row_bytes(dimension, vector_dtype)
    vector_format = VECTOR_FORMATS[vector_dtype]
    vector_bytes = dimension * vector_format.bytes_per_number + vector_format.bytes_per_vector
    token_bytes = vector_bytes if kind == "multi-vector" else USUAL_TERMS_PER_TOKEN * TERM_BYTES
    return texts * (ROW_BYTES + OFFSET_BYTES) + tokens * token_bytes
