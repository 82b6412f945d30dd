"""The embedding key: it changes with everything that changes a vector, and with nothing else."""

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
CHANGES_BOTH_KEYS: list[tuple[str, Any]] = [
    ("weights", "others"), ("dtype", "bfloat16"), ("engine", "vllm"), ("vector_dtype", "int8"), ("rope", "yarn:4"),
    ("code", "c0de"), ("method.pooling", "last"), ("method.special_tokens", False), ("method.eos", True),
    ("method.cut", "text"), ("method.attention", "bidirectional"), ("method.layer", 2), ("method.span", "text"),
]  # fmt: skip
CHANGES_QUERY_KEY = [("query_limit", 31), ("method.query", "q:{instruction} {text}"), ("instruction", "find it!")]
CHANGES_DOCUMENT_KEY = [("document_limit", 65), ("method.document", "d:{text}")]
CHANGES_NO_KEY: list[tuple[str, Any]] = [
    ("adaptor", "a"), ("dimensions", 8), ("method.name", "n"), ("method.title", "another"), ("method.source", "there"),
    ("method.fidelity", "exact"), ("method.paper", "1"), ("method.post", "centre"),
]  # fmt: skip


def apply_changes(spec: EncoderSpec, changes: dict[str, Any]) -> EncoderSpec:
    own_changes = {name: value for name, value in changes.items() if "." not in name}
    inner = {name.removeprefix("method."): value for name, value in changes.items() if "." in name}
    return replace(spec, method=replace(spec.method, **inner), **own_changes)


def compute_keys(spec: EncoderSpec) -> tuple[str, str]:
    return compute_digest(spec.describe_vectors("query")), compute_digest(spec.describe_vectors("document"))


@given(
    st.sets(st.sampled_from(CHANGES_BOTH_KEYS)), st.sets(st.sampled_from(CHANGES_QUERY_KEY)),
    st.sets(st.sampled_from(CHANGES_DOCUMENT_KEY)), st.sets(st.sampled_from(CHANGES_NO_KEY)),
)  # fmt: skip
def test_a_key_changes_exactly_with_what_changes_a_vector(
    both: set[tuple[str, Any]],
    queries: set[tuple[str, Any]],
    documents: set[tuple[str, Any]],
    neither: set[tuple[str, Any]],
) -> None:
    keys = compute_keys(apply_changes(SPEC, dict(both | queries | documents | neither)))
    differs = tuple(key != spec_key for key, spec_key in zip(keys, compute_keys(SPEC), strict=True))
    assert differs == (bool(both | queries), bool(both | documents))


moves = st.sets(st.sampled_from(CHANGES_BOTH_KEYS + CHANGES_QUERY_KEY + CHANGES_DOCUMENT_KEY))


@given(moves, moves)
def test_two_sets_of_changes_share_a_key_only_if_they_are_equal(
    key: set[tuple[str, Any]], spec_key: set[tuple[str, Any]]
) -> None:
    assert (compute_keys(apply_changes(SPEC, dict(key))) == compute_keys(apply_changes(SPEC, dict(spec_key)))) == (
        key == spec_key
    )
