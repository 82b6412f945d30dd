"""RoPE scaling for evaluation: `linear:2`, `yarn:4`, `dynamic` (which is `dynamic:1`).

Names and formulas are those of transformers. `linear` divides every position by the factor. `yarn` scales low
frequencies and keeps high ones. `dynamic` changes nothing up to the trained context length and scales the base for each
longer text by its length. The setting does not change how much of a text is read: that is `max_length`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from retbench.errors import UsageError, suggest_names

RopeKind = Literal["linear", "dynamic", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


@dataclass(frozen=True)
class RopeScaling:
    """The kind and factor of RoPE scaling."""

    kind: RopeKind
    factor: float

    @property
    def setting(self) -> str:
        """The canonical form, as stored in settings."""
        return f"{self.kind}:{self.factor:g}"


def parse_rope_scaling(text: str) -> RopeScaling:
    """Parse the value of `--set rope=`."""
    kind, _, number = text.partition(":")
    if kind not in ROPE_KINDS:
        raise UsageError(f"rope={text}: there is no such scaling", suggest_names(kind, ROPE_KINDS))
    minimum = 1.0 if kind == "dynamic" else 1.0 + 1e-6  # a factor of 1 scales nothing
    try:
        factor = float(number or ("1" if kind == "dynamic" else "nan"))
    except ValueError:
        factor = 0.0
    if not minimum <= factor <= 1024:
        raise UsageError(f"rope={text}: the factor must be above 1 and at most 1024", f"write rope={kind}:2")
    return RopeScaling(kind, factor)
