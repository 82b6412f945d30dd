"""The specification of an encoder: all settings that determine a vector. It needs no torch and no loaded model."""

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from retbench.cards.method import DESCRIPTIVE_FIELDS, Method, Role
from retbench.cards.model import Dtype, EncoderDtype
from retbench.cards.task import TaskCard
from retbench.store.vector_formats import VectorDtype

# Method fields that do not change stored vectors. `instruction` is a field of EncoderSpec: a task may replace it.
METHOD_FIELDS_AFTER_STORE = ("name", "instruction", "post", "components", "kind")

# Fields that are left out of keys while they have their default, so that adding a field changes no existing key.
SPEC_DEFAULTS = {
    "adaptor": None,
    "dimensions": None,
    "vector_dtype": "fp32",
    "rope": None,
    "code": None,
    "modules": None,
    "image_processor": None,
    "min_pixels": None,
    "max_pixels": None,
}
SPEC_FIELDS_AFTER_STORE = ("adaptor", "dimensions")  # applied when stored vectors are read


@dataclass(frozen=True)
class EncoderSpec:
    """Weights, method, length limits and dtype of one encoder."""

    weights: str
    method: Method
    instruction: str
    query_limit: int
    document_limit: int
    dtype: EncoderDtype
    engine: str = "transformers"
    adaptor: str | None = None  # checksum; the stored vectors are those of the parent model
    dimensions: int | None = None  # only the first n are compared; all are stored
    vector_dtype: VectorDtype = "fp32"  # format of stored vectors
    rope: str | None = None  # RoPE scaling (cards/rope_scaling.py)
    code: str | None = None  # digest of the trusted remote code (engines/remote_code.py)
    modules: str | None = None  # fingerprint of the sentence-transformers modules, if their pooling is used
    image_processor: str | None = None  # digest of its settings, if the collection has images
    min_pixels: int | None = None  # of an image; None: as the image processor's settings say
    max_pixels: int | None = None

    @property
    def weights_dtype(self) -> Dtype:
        """The dtype in which weights are loaded; int8 layers are made from float32."""
        return "float32" if self.dtype == "int8" else self.dtype

    def get_limit(self, role: Role) -> int:
        """The maximum number of tokens of a query or a document."""
        return self.query_limit if role == "query" else self.document_limit

    def describe(self) -> dict[str, Any]:
        """All settings, for the settings-id and the record."""
        facts = {**asdict(self), "method": describe_method(self.method)}
        return {key: value for key, value in facts.items() if SPEC_DEFAULTS.get(key, key) != value}

    def describe_vectors(self, role: Role) -> dict[str, Any]:
        """The settings that determine the vectors of one role. The limit and template of the other role do not."""
        other = "document" if role == "query" else "query"
        method = {
            key: value
            for key, value in describe_method(self.method).items()
            if key not in (other, *METHOD_FIELDS_AFTER_STORE)
        }
        spec_fields = {
            key: value
            for key, value in self.describe().items()
            if key not in (f"{other}_limit", *SPEC_FIELDS_AFTER_STORE)
        }
        if self.method.kind != self.method.vector_kind:
            method["terms"] = True  # sparse and hybrid use the same stored rows
        uses_instruction = "{instruction}" in self.method.get_template(role)
        return {
            **spec_fields,
            "method": method,
            "instruction": self.instruction if uses_instruction else "",
            "role": role,
        }


def describe_method(method: Method) -> dict[str, Any]:
    """The fields of a method that differ from their default, so that a new field changes no existing key."""
    values = list_changed_fields(method)
    return {key: value for key, value in values.items() if key not in DESCRIPTIVE_FIELDS}


def list_changed_fields(card: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their default; a field that is a dataclass becomes such a table."""
    values = {field.name: (getattr(card, field.name), field.default) for field in fields(card)}
    return {
        key: list_changed_fields(value) if is_dataclass(value) else value
        for key, (value, default) in values.items()
        if value != default
    }


def compute_length_limits(
    task: TaskCard, max_length: int | None, context_length: int | None, wanted: int | None = None
) -> tuple[int, int]:
    """Limits for queries and documents: the smaller one of task and model. 0 in the task means no limit.

    `wanted` is that of `--set max_length`; longer than both limits of the task, it replaces them.
    """
    lengths = (task.lengths.query, task.lengths.document)
    if wanted and all(0 < length < wanted for length in lengths):
        return wanted, wanted
    model_limit = wanted or max_length or context_length or 512
    return (min(lengths[0] or model_limit, model_limit), min(lengths[1] or model_limit, model_limit))
