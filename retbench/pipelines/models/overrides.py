"""The values of `--set`, checked and parsed once.

`split`, `depth` and `images` change the task; the other values change the encoder or the search.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from retbench.cards import ann_settings, rope_scaling
from retbench.cards.ann_settings import AnnSettings
from retbench.cards.model import SHORT_DTYPES, EncoderDtype
from retbench.cards.task import ImageUse, TaskCard
from retbench.errors import UsageError, suggest_names
from retbench.store.vector_formats import VECTOR_FORMATS, VectorDtype

VALUE_TYPES: dict[str, type] = {
    "dtype": str,
    "max_length": int,
    "split": str,
    "depth": int,
    "dimensions": int,
    "vector_dtype": str,
    "rope": str,
    "images": str,
    "max_pixels": int,
    "search": str,
}
DTYPES: tuple[str, ...] = get_args(EncoderDtype)


@dataclass(frozen=True)
class Overrides:
    """Settings that replace those of the cards; None where the card applies."""

    dtype: EncoderDtype | None = None
    max_length: int | None = None
    split: str | None = None
    depth: int | None = None
    dimensions: int | None = None
    vector_dtype: VectorDtype | None = None
    rope: str | None = None  # the canonical form
    images: ImageUse | None = None
    max_pixels: int | None = None  # of an image
    search: AnnSettings | None = None  # exact search without it

    @staticmethod
    def parse(values: Mapping[str, Any]) -> "Overrides":
        """Check and parse the values of `--set`."""
        if "dtype" in values:
            values = {**values, "dtype": SHORT_DTYPES.get(values["dtype"], values["dtype"])}
        _check_types(values)
        _check_values(values)
        parsed = dict(values)
        if "search" in values:
            parsed["search"] = ann_settings.parse_ann_settings(values["search"])
        if "rope" in values:
            parsed["rope"] = rope_scaling.parse_rope_scaling(values["rope"]).setting
        return Overrides(**parsed)

    def apply_to_task(self, card: TaskCard) -> TaskCard:
        """Return the task with the changed split, depth and use of images."""
        depth = card.depth if self.depth is None else self.depth
        card = replace(card, split=self.split or card.split, depth=depth, images=self.images or card.images)
        if card.depth < int(card.metric.rpartition("_")[2]):
            raise UsageError(f"depth {card.depth} is too small for {card.metric}", "give a larger --set depth=")
        return card


def _check_types(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key not in VALUE_TYPES:
            raise UsageError(f"--set has no key {key!r}", suggest_names(key, VALUE_TYPES))
        if type(value) is not VALUE_TYPES[key]:
            raise UsageError(f"--set {key}={value}: not a {VALUE_TYPES[key].__name__}", f"write {key}=VALUE")


def _check_values(values: Mapping[str, Any]) -> None:
    choices = (("dtype", DTYPES), ("vector_dtype", tuple(VECTOR_FORMATS)), ("images", get_args(ImageUse)))
    for key, names in choices:
        if key in values and values[key] not in names:
            raise UsageError(f"--set {key}={values[key]}: there is no such {key}", suggest_names(values[key], names))
    for key in ("dimensions", "max_length", "max_pixels"):
        if values.get(key, 1) < 1:
            raise UsageError(f"--set {key}={values[key]} is too small", "give 1 or more")
