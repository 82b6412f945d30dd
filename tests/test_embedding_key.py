"""The name of stored vectors: any change that moves a vector gives another one, and no other change does."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retbench.cards.method import Method
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.store.digest import compute_digest

METHOD = Method("m", "a title", "ours", "here", "mean", query="q: {instruction} {text}", document="d: {text}")
SPEC = EncoderSpec("weights", METHOD, "find it", 32, 64, "float32")

# field, another value; a method's own fields begin with "method."
MOVES_BOTH: list[tuple[str, Any]] = [
    ("weights", "others"), ("dtype", "bfloat16"), ("engine", "vllm"), ("vector_dtype", "int8"), ("rope", "yarn:4"),
    ("code", "c0de"), ("method.pooling", "last"), ("method.special_tokens", False), ("method.eos", True),
    ("method.cut", "text"), ("method.attention", "bidirectional"), ("method.layer", 2), ("method.span", "text"),
]  # fmt: skip
MOVES_QUERIES = [("query_limit", 31), ("method.query", "q:{instruction} {text}"), ("instruction", "find it!")]
MOVES_DOCUMENTS = [("document_limit", 65), ("method.document", "d:{text}")]
MOVES_NONE: list[tuple[str, Any]] = [
    ("adaptor", "a"), ("dimensions", 8), ("method.name", "n"), ("method.title", "another"), ("method.source", "there"),
    ("method.fidelity", "exact"), ("method.paper", "1"), ("method.post", "centre"),
]  # fmt: skip


def changed(spec: EncoderSpec, changes: dict[str, Any]) -> EncoderSpec:
    own = {name: value for name, value in changes.items() if "." not in name}
    inner = {name.removeprefix("method."): value for name, value in changes.items() if "." in name}
    return replace(spec, method=replace(spec.method, **inner), **own)


def keys(spec: EncoderSpec) -> tuple[str, str]:
    return compute_digest(spec.describe_vectors("query")), compute_digest(spec.describe_vectors("document"))


@given(
    st.sets(st.sampled_from(MOVES_BOTH)), st.sets(st.sampled_from(MOVES_QUERIES)),
    st.sets(st.sampled_from(MOVES_DOCUMENTS)), st.sets(st.sampled_from(MOVES_NONE)),
)  # fmt: skip
def test_a_key_follows_what_moves_a_vector_and_nothing_else(
    both: set[tuple[str, Any]],
    queries: set[tuple[str, Any]],
    documents: set[tuple[str, Any]],
    neither: set[tuple[str, Any]],
) -> None:
    found = keys(changed(SPEC, dict(both | queries | documents | neither)))
    differs = tuple(one != other for one, other in zip(found, keys(SPEC), strict=True))
    assert differs == (bool(both | queries), bool(both | documents))


moves = st.sets(st.sampled_from(MOVES_BOTH + MOVES_QUERIES + MOVES_DOCUMENTS))


@given(moves, moves)
def test_two_sets_of_changes_share_a_key_only_where_they_are_one(
    one: set[tuple[str, Any]], other: set[tuple[str, Any]]
) -> None:
    assert (keys(changed(SPEC, dict(one))) == keys(changed(SPEC, dict(other)))) == (one == other)
