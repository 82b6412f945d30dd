"""What the user asked for, checked before anything is done."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from retbench.cards import ann_settings, rope_scaling
from retbench.cards.compute_target import parse_compute_target
from retbench.cards.model import Dtype
from retbench.errors import UsageError, suggest_names
from retbench.records.phase_timer import Show, Silent
from retbench.store.vector_formats import VECTOR_FORMATS

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
DTYPES: tuple[str, ...] = get_args(Dtype)


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
        parse_compute_target(self.devices)
        need_known(self.overrides)
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"--sample {self.sample} draws nothing", "give a number of test queries, 1 or more")


def need_known(overrides: Mapping[str, Any]) -> None:
    """Refuse what --set does not take."""
    for key, value in overrides.items():
        if key not in OVERRIDES:
            raise UsageError(f"--set knows no {key!r}", suggest_names(key, OVERRIDES))
        if type(value) is not OVERRIDES[key]:
            raise UsageError(f"--set {key}={value}: not a {OVERRIDES[key].__name__}", f"write {key}=VALUE")
    dtype = overrides.get("dtype", "float32")
    if dtype not in DTYPES:
        raise UsageError(f"--set dtype={dtype}: no such dtype", suggest_names(dtype, DTYPES))
    stored = overrides.get("vector_dtype", "fp32")
    if stored not in VECTOR_FORMATS:
        raise UsageError(f"--set vector_dtype={stored}: no such form", suggest_names(stored, VECTOR_FORMATS))
    ann_settings.parse_ann_settings(overrides.get("search", "exact"))
    if "rope" in overrides:
        rope_scaling.parse_rope_scaling(overrides["rope"])
    for key in ("dimensions", "max_length"):
        if overrides.get(key, 1) < 1:
            raise UsageError(f"--set {key}={overrides[key]} leaves nothing", "give 1 or more")


def command_line() -> str:
    """The command as typed; an absolute path would tell about the machine and is cut to its last part."""
    words = ["retbench", *sys.argv[1:]]
    return " ".join(re.sub(r"(^|=)(/[^,]+)", lambda found: found[1] + Path(found[2]).name, word) for word in words)
