"""An encoder before it is loaded: everything that decides a vector, so that finished work is found without torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from retbench.cards.method import DESCRIPTIVE_FIELDS, Method, Role
from retbench.cards.model import Dtype
from retbench.cards.task import TaskCard
from retbench.store.vector_formats import VectorDtype

# what a method says beside its stored vectors; `instruction` is in the encoder, where the task's own may replace it
METHOD_FIELDS_AFTER_STORE = ("name", "instruction", "post", "components", "kind")

# settings of an encoder that are told only where they are used, so that no older key changes
SPEC_DEFAULTS = {
    "adaptor": None,
    "dimensions": None,
    "vector_dtype": "fp32",
    "rope": None,
    "code": None,
    "modules": None,
}
SPEC_FIELDS_AFTER_STORE = ("adaptor", "dimensions")


@dataclass(frozen=True)
class EncoderSpec:
    """Weights, method, limits and dtype of one encoder."""

    weights: str
    method: Method
    instruction: str
    query_limit: int
    document_limit: int
    dtype: Dtype
    engine: str = "transformers"
    adaptor: str | None = None  # the digest of what changes stored vectors; the vectors themselves are its parent's
    dimensions: int | None = None  # compared by the first so many alone; stored whole
    vector_dtype: VectorDtype = "fp32"  # of stored vectors
    rope: str | None = None  # how rotary positions are stretched (cards/rope.py)
    code: str | None = None  # the digest of code beside the weights that was trusted to run (engines/code.py)
    modules: str | None = None  # of what a published embedder runs behind its backbone, where its own pooling is used

    def get_limit(self, role: Role) -> int:
        """The most tokens a text may have on one side."""
        return self.query_limit if role == "query" else self.document_limit

    def describe(self) -> dict[str, Any]:
        """The facts, for the key and the record."""
        facts = {**asdict(self), "method": describe_method(self.method)}
        return {key: value for key, value in facts.items() if SPEC_DEFAULTS.get(key, key) != value}

    def describe_vectors(self, role: Role) -> dict[str, Any]:
        """What decides a vector on one side: a query does not depend on the limit or template of documents."""
        other = "document" if role == "query" else "query"
        method = {
            key: value
            for key, value in describe_method(self.method).items()
            if key not in (other, *METHOD_FIELDS_AFTER_STORE)
        }
        kept = {
            key: value
            for key, value in self.describe().items()
            if key not in (f"{other}_limit", *SPEC_FIELDS_AFTER_STORE)
        }
        if self.method.kind != "dense":
            method["terms"] = True  # sparse and hybrid read the same rows
        asked = "{instruction}" in self.method.get_template(role)
        return {**kept, "method": method, "instruction": self.instruction if asked else "", "role": role}


def describe_method(method: Method) -> dict[str, Any]:
    """A method's facts; what is left at its default is not told, so that a new field changes no old key."""
    values = {field.name: (getattr(method, field.name), field.default) for field in fields(method)}
    return {
        key: value for key, (value, default) in values.items() if key not in DESCRIPTIVE_FIELDS and value != default
    }


def compute_length_limits(task: TaskCard, max_length: int | None, context_length: int | None) -> tuple[int, int]:
    """The smaller of the task's length and the model's, for queries and for documents; 0 in the task is no limit."""
    own = max_length or context_length or 512
    lengths = (task.lengths.query, task.lengths.document)
    return (min(lengths[0] or own, own), min(lengths[1] or own, own))
