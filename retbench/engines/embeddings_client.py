"""A client for servers with OpenAI's /v1/embeddings: sends texts, returns vectors. `http_client.py` sends the requests.

All vectors must have the width of the first one; another width stops the run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from retbench.cards.text_parsers import parse_json
from retbench.engines.http_client import EndpointServer, TransientError
from retbench.errors import DataError


@dataclass
class EmbeddingsClient:
    """One embedding model of one server."""

    server: EndpointServer
    model: str
    width: int | None = None

    def get_dimension(self) -> int:
        """Width of a vector. If it is not configured, one text is embedded to find out."""
        return self.server.engine.dimensions or self.width or self.embed_texts(["width"]).shape[1]

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """The vectors in the order of the texts."""
        size = self.server.engine.batch_size
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        return np.concatenate([self._embed_batch(batch) for batch in batches])

    def _embed_batch(self, texts: list[str]) -> np.ndarray:
        body: dict[str, Any] = {"model": self.model, "input": texts, "encoding_format": "float"}
        if self.server.engine.dimensions:
            body["dimensions"] = self.server.engine.dimensions
        return self.server.post("embeddings", body, partial(self._parse_vectors, texts=texts))

    def _parse_vectors(self, content: bytes, texts: list[str]) -> np.ndarray:
        try:
            rows = {row["index"]: row["embedding"] for row in parse_json(content)["data"]}
            vectors = np.array([rows[index] for index in range(len(texts))], dtype=np.float32)
            if vectors.ndim != 2 or not vectors.shape[1]:
                raise ValueError(f"their shape is {vectors.shape}")
        except (ValueError, KeyError, TypeError, OverflowError) as problem:
            raise TransientError(
                f"the server did not send {len(texts)} vectors of one width ({problem!r:.80})"
            ) from None
        self.width = self.width or vectors.shape[1]
        width = self.server.engine.dimensions or self.width
        if vectors.shape[1] != width:
            raise DataError(
                f"the endpoint sent vectors of width {vectors.shape[1]}, not {width}",
                "the server changed its model or cannot shorten vectors: leave `dimensions` out, or use another server",
            )
        return vectors
