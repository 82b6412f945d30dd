"""What the user asked for, checked before anything is done."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retbench.cards import near, rope
from retbench.cards.site import site
from retbench.errors import UsageError, closest
from retbench.records.meter import Show, Silent
from retbench.store.narrow import FORMS

OVERRIDES: dict[str, type] = {
    "dtype": str,
    "max_length": int,
    "split": str,
    "depth": int,
    "dimensions": int,
    "vector_dtype": str,
    "rope": str,
    "search": str,
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ()
    weights: str | None = None
    sample: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    rerank: tuple[str, ...] = ()
    out: Path = Path("results")
    show: Show = field(default_factory=Silent)
    say: Callable[[str], None] = lambda _: None
    command: str = "retbench.evaluate(...)"
    engine: str = "transformers"
    devices: str = "1"

    def __post_init__(self) -> None:
        site(self.devices)
        for key, value in self.overrides.items():
            if key not in OVERRIDES:
                raise UsageError(f"--set knows no {key!r}", closest(key, OVERRIDES))
            if type(value) is not OVERRIDES[key]:
                raise UsageError(f"--set {key}={value}: not a {OVERRIDES[key].__name__}", f"write {key}=VALUE")
        stored = self.overrides.get("vector_dtype", "fp32")
        if stored not in FORMS:
            raise UsageError(f"--set vector_dtype={stored}: no such form", closest(stored, FORMS))
        near.read(self.overrides.get("search", "exact"))
        if "rope" in self.overrides:
            rope.read(self.overrides["rope"])
        if self.overrides.get("dimensions", 1) < 1:
            raise UsageError("--set dimensions=0 leaves nothing", "give 1 or more")
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"--sample {self.sample} draws nothing", "give a number of test queries, 1 or more")


def command_line() -> str:
    """The command as typed; an absolute path would tell about the machine and is cut to its last part."""
    words = ["retbench", *sys.argv[1:]]
    return " ".join(re.sub(r"(^|=)(/[^,]+)", lambda found: found[1] + Path(found[2]).name, word) for word in words)
