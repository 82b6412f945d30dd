"""The engine: what runs a model. `--engine NAME` or `--engine NAME:key=value,...`; a field here is an option there.

Only what may change a vector goes into `named`, and with it into the key and the settings-id; how fast and how
patiently an engine works does not.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from retbench.cards import options
from retbench.cards.method import Method
from retbench.errors import UsageError, suggest_names

EngineName = Literal["transformers", "sentence-transformers", "vllm", "endpoint"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
SETTINGS_OPTIONS = ("model", "dimensions")


@dataclass(frozen=True)
class Engine:
    """One engine and its options; those below `dimensions` are the patience of an endpoint."""

    name: EngineName = "transformers"
    model: str | None = None  # endpoint: the name its server knows the model by
    dimensions: int | None = None  # endpoint: the width asked for, where a server can cut its vectors
    texts: int = 64  # endpoint: the most texts a request
    timeout: int = 60  # endpoint: seconds
    tries: int = 6  # endpoint: how often one request is sent before the run stops
    per_minute: int = 0  # endpoint: requests a minute, 0 for no limit

    @property
    def settings_name(self) -> str:
        """The engine as the settings know it."""
        said = {key: str(getattr(self, key)) for key in SETTINGS_OPTIONS if getattr(self, key) is not None}
        return options.join_options(self.name, said)

    def find_unsupported(self, method: Method) -> str | None:
        """What this engine cannot do of a method, in words; none where it can do all of it."""
        if self.name == "transformers":
            return "a pooling of its own" if method.pooling == "model" else None
        poolings = SUPPORTED_POOLINGS[self.name]
        wanted = {
            f"{method.pooling} pooling": method.pooling not in poolings,
            f"a {method.kind} ranking": method.kind != "dense",
            "pooling over a part of the tokens": method.span != "all",
            "a chosen layer": method.layer is not None,
            "attention in both directions": method.attention != "own" and self.name != "vllm",
            "a chat template": method.chat and self.name == "endpoint",
            "an end token of our own": method.eos and self.name == "endpoint",
        }
        return next((what for what, asked in wanted.items() if asked), None)


SUPPORTED_POOLINGS: dict[EngineName, tuple[str, ...]] = {
    "sentence-transformers": ("last", "first", "mean", "weighted", "model"),
    "vllm": ("last", "mean"),
    "endpoint": ("model",),
}


def parse_engine(word: str) -> Engine:
    """The engine and its options, as typed."""
    name, wanted = options.split_options(word)
    if name not in ENGINE_NAMES:
        raise UsageError(f"there is no engine called {name!r}", suggest_names(name, ENGINE_NAMES))
    found = options.apply_options(Engine(name), wanted, fixed=("name",))
    if name != "endpoint" and wanted:
        raise UsageError(f"the engine {name} takes no options", f"write --engine {name}")
    return found
