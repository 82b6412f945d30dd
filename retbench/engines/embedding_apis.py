"""The shapes of requests and answers of embedding servers: OpenAI's (also vLLM's), TEI's own, and Cohere's.

A server is asked not to cut long texts silently: TEI and Cohere have a field for it, which is switched on only for a
text that was refused, and such texts are counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retbench.cards.engine import ApiName
from retbench.cards.method import Role

Rows = list[list[float]]


@dataclass(frozen=True)
class EmbeddingsApi:
    """One shape: the path after the server's address, the body of a request, and what an answer holds."""

    path: str
    text_field: str
    dimensions_field: str
    read_rows: Callable[[Any, int], Rows]
    read_tokens: Callable[[Any], int | None]
    fixed: dict[str, Any] = field(default_factory=dict)
    truncation: dict[bool, dict[str, Any]] = field(default_factory=dict)  # by whether the server may cut the texts
    role_values: dict[Role, dict[str, Any]] = field(default_factory=dict)
    has_own_root: bool = False  # its path does not follow /v1

    def get_url_path(self, address: str) -> tuple[str, str]:
        """The address without a version that does not belong to this shape, and the path."""
        if not self.has_own_root:
            return address, self.path
        root, _, version = address.rpartition("/")
        return (root if version in ("v1", "v2") else address), self.path

    def build_body(self, model: str, texts: list[str], role: Role, dimensions: int | None, cut: bool) -> dict[str, Any]:
        """The body of a request; with `cut` the server may shorten the texts, where it can."""
        body = {"model": model, self.text_field: texts, **self.fixed, **self.role_values.get(role, {})}
        if dimensions:
            body[self.dimensions_field] = dimensions
        return {**body, **self.truncation.get(cut, {})}


def _read_openai_rows(answer: Any, count: int) -> Rows:
    rows = {row["index"]: row["embedding"] for row in answer["data"]}
    return [rows[index] for index in range(count)]


def _read_openai_tokens(answer: Any) -> int | None:
    usage = answer.get("usage") or {}
    tokens = usage.get("prompt_tokens", usage.get("total_tokens"))
    return tokens if isinstance(tokens, int) else None


def _read_plain_rows(answer: Any, count: int) -> Rows:
    return list(answer)


def _read_cohere_rows(answer: Any, count: int) -> Rows:
    return list(answer["embeddings"]["float"])


def _read_cohere_tokens(answer: Any) -> int | None:
    tokens = ((answer.get("meta") or {}).get("billed_units") or {}).get("input_tokens")
    return int(tokens) if isinstance(tokens, int | float) else None


EMBEDDINGS_APIS: dict[ApiName, EmbeddingsApi] = {
    "openai": EmbeddingsApi(
        "embeddings", "input", "dimensions", _read_openai_rows, _read_openai_tokens, {"encoding_format": "float"}
    ),
    "tei": EmbeddingsApi(
        "embed", "inputs", "dimensions", _read_plain_rows, lambda answer: None, {"normalize": False},
        {False: {"truncate": False}, True: {"truncate": True}}, has_own_root=True,
    ),
    "cohere": EmbeddingsApi(
        "v2/embed", "texts", "output_dimension", _read_cohere_rows, _read_cohere_tokens, {"embedding_types": ["float"]},
        {False: {"truncate": "NONE"}, True: {"truncate": "END"}},
        {"query": {"input_type": "search_query"}, "document": {"input_type": "search_document"}}, has_own_root=True,
    ),
}  # fmt: skip
