"""Rotary positions stretched for evaluation: `linear:2`, `yarn:4`, `dynamic` (which is `dynamic:1`).

The names and the arithmetic are transformers' own. `linear` divides every position by the factor, `yarn` stretches slow
angles and keeps fast ones, `dynamic` changes nothing up to the window the weights were trained with and stretches the
base for longer texts, each by its own length. The setting stretches positions alone: how much of a text is read is
`max_length`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from retbench.errors import UsageError, suggest_names

RopeKind = Literal["linear", "dynamic", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


@dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched."""

    kind: RopeKind
    factor: float

    @property
    def setting(self) -> str:
        """The one way to write it."""
        return f"{self.kind}:{self.factor:g}"


def parse_rope_scaling(word: str) -> RopeScaling:
    """A setting as typed."""
    kind, _, number = word.partition(":")
    if kind not in ROPE_KINDS:
        raise UsageError(f"rope={word}: no such scaling", suggest_names(kind, ROPE_KINDS))
    least = 1.0 if kind == "dynamic" else 1.0 + 1e-6  # by 1, nothing would be stretched
    try:
        factor = float(number or ("1" if kind == "dynamic" else "nan"))
    except ValueError:
        factor = 0.0
    if not least <= factor <= 1024:
        raise UsageError(f"rope={word}: a factor above 1 is needed", f"write rope={kind}:2")
    return RopeScaling(kind, factor)
