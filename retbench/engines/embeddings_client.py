"""A client for embedding servers: sends texts, returns vectors. `http_client.py` sends the requests.

Texts are cut into batches of a fixed size, and several batches are in flight at once. A batch that the server refuses
for its size is cut at the number of texts that the server names, else in halves; the parts depend on nothing but the
texts and the server's answers, so timing changes no vector. A single text that is too long is cut by the server or
here, and counted. All vectors must have the width of the first one; another width stops the run.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from retbench.cards.method import Role
from retbench.engines.embedding_apis import EMBEDDINGS_APIS, EmbeddingsApi
from retbench.engines.http_client import EndpointServer, RefusedRequestError, TransientError
from retbench.engines.refused_batches import find_batch_limit, find_kept_share, is_about_size
from retbench.errors import DataError
from retbench.system.text_parsers import parse_json

BYTES_PER_TOKEN = 4  # of a text, where the server does not count
MIN_CUT_CHARACTERS = 16  # a text that is refused at this length is not refused for its length
SAFE_SHARE, BLIND_SHARE = 0.95, 0.75  # of a text that was too long: with and without the server's numbers

log = logging.getLogger(__name__)


@dataclass
class EndpointUsage:
    """What was sent: tokens as the server counts them (estimated where it does not), and texts that were cut."""

    tokens: int = 0
    cut_texts: int = 0
    turn: int = 0  # of the requests: those of the lowest are sent first
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, tokens: int = 0, cut_texts: int = 0) -> None:
        """Count from any thread."""
        with self.lock:
            self.tokens, self.cut_texts = self.tokens + tokens, self.cut_texts + cut_texts


@dataclass
class EmbeddingsClient:
    """One embedding model of one server."""

    server: EndpointServer
    model: str
    width: int | None = None
    batch_limit: int | None = None  # the most texts of a request, as the server said
    usage: EndpointUsage = field(default_factory=EndpointUsage)

    @property
    def api(self) -> EmbeddingsApi:
        """The shape of requests and answers."""
        return EMBEDDINGS_APIS[self.server.engine.api]

    def get_dimension(self) -> int:
        """Width of a vector. If it is not configured, one text is embedded to find out."""
        return self.server.engine.dimensions or self.width or self.embed_texts(["width"]).shape[1]

    def embed_texts(self, texts: list[str], role: Role = "document", usage: EndpointUsage | None = None) -> np.ndarray:
        """The vectors in the order of the texts; `usage` counts these texts apart."""
        size, count = self.server.engine.batch_size, usage or self.usage
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        embed = partial(self._embed_batch, role=role, usage=count)
        if len(batches) == 1:
            return embed(batches[0])
        with ThreadPoolExecutor(min(len(batches), self.server.engine.max_in_flight)) as pool:
            futures = [pool.submit(embed, batch) for batch in batches]
            try:
                return np.concatenate([future.result() for future in futures])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _embed_batch(self, texts: list[str], role: Role, usage: EndpointUsage) -> np.ndarray:
        if self.batch_limit and len(texts) > self.batch_limit:
            return self._embed_parts(texts, self.batch_limit, role, usage)
        try:
            return self._post(texts, role, usage)
        except RefusedRequestError as refusal:
            if limit := find_batch_limit(refusal.text, len(texts)):
                self.batch_limit = limit
                return self._embed_parts(texts, limit, role, usage)
            if not is_about_size(refusal.status, refusal.text):
                raise
            if len(texts) > 1:
                return self._embed_parts(texts, (len(texts) + 1) // 2, role, usage)
            return self._embed_long_text(texts[0], refusal, role, usage)

    def _embed_parts(self, texts: list[str], size: int, role: Role, usage: EndpointUsage) -> np.ndarray:
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        return np.concatenate([self._embed_batch(part, role, usage) for part in parts])

    def _embed_long_text(self, text: str, refusal: RefusedRequestError, role: Role, usage: EndpointUsage) -> np.ndarray:
        """Embed a text that was refused alone: the server cuts it if it can, else it is cut here until it fits."""
        if not usage.cut_texts:
            log.warning("a text is too long for the server and is cut; the record counts such texts (cut_texts)")
        usage.add(cut_texts=1)
        if self.api.truncation:
            return self._post([text], role, usage, cut=True)
        while len(text) > MIN_CUT_CHARACTERS:
            share = find_kept_share(refusal.text)
            text = text[: int(len(text) * (BLIND_SHARE if share is None else SAFE_SHARE * share))]
            try:
                return self._post([text], role, usage)
            except RefusedRequestError as problem:
                if not is_about_size(problem.status, problem.text):
                    raise
                refusal = problem
        raise refusal

    def _post(self, texts: list[str], role: Role, usage: EndpointUsage, cut: bool = False) -> np.ndarray:
        body = self.api.build_body(self.model, texts, role, self.server.engine.dimensions, cut)
        estimate = sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN + len(texts)
        address, path = self.api.get_url_path(self.server.address)
        parse = partial(self._parse_vectors, texts=texts)
        vectors, tokens = self.server.post(path, body, parse, estimate, address, usage.turn)
        usage.add(tokens=estimate if tokens is None else tokens)
        return vectors

    def _parse_vectors(self, content: bytes, texts: list[str]) -> tuple[np.ndarray, int | None]:
        try:
            answer = parse_json(content)
            vectors = np.array(self.api.read_rows(answer, len(texts)), dtype=np.float32)
            if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != len(texts):
                raise ValueError(f"their shape is {vectors.shape}")
            tokens = self.api.read_tokens(answer)
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as problem:
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
        return vectors, tokens
