"""The engine that runs a model: `--engine NAME` or `--engine NAME:key=value,...`; each field is an option.

Only options that may change a vector are part of `settings_name`, and with it of the embedding key and the
settings-id. Speed and retry options are not.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from retbench.cards import options
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.errors import UsageError, suggest_names

EngineName = Literal["transformers", "sentence-transformers", "vllm", "endpoint"]
ApiName = Literal["openai", "tei", "cohere"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
DEFAULT_API: ApiName = "openai"  # left out of settings, so that early settings-ids stay
RENAMED_OPTIONS = {"texts": "batch_size", "tries": "max_attempts", "per_minute": "requests_per_minute"}
SETTINGS_OPTIONS = ("api", "model", "dimensions", "tensor_parallel_size", "enforce_eager")
ENDPOINT_OPTIONS = (
    "api", "model", "dimensions", "batch_size", "timeout", "max_attempts", "max_in_flight", "requests_per_minute",
    "tokens_per_minute", "price",
)  # fmt: skip
VLLM_OPTIONS = ("tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")


@dataclass(frozen=True)
class Engine:
    """One engine and its options."""

    name: EngineName = "transformers"
    api: ApiName = "openai"  # endpoint: the shape of requests; vLLM and TEI's /v1 have OpenAI's
    model: str | None = None  # endpoint: the model name on the server
    dimensions: int | None = None  # endpoint: the requested width, where the server can truncate vectors
    batch_size: int = 64  # endpoint: the most texts per request
    timeout: int = 60  # endpoint: seconds per request
    max_attempts: int = 6  # endpoint: attempts per request before the run stops
    max_in_flight: int = 32  # endpoint: the most requests at once; fewer while that is as fast
    requests_per_minute: int = 0  # endpoint: requests per minute; 0 for no limit
    tokens_per_minute: int = 0  # endpoint: tokens per minute; 0 for no limit
    price: float | None = None  # endpoint: the price of a million tokens
    tensor_parallel_size: int | None = None  # vllm: GPUs that share one model
    gpu_memory_utilization: float | None = None  # vllm: the share of a GPU's memory that it may use
    enforce_eager: bool | None = None  # vllm: no CUDA graphs and no compilation

    @property
    def settings_name(self) -> str:
        """The engine and the options that may change a vector, as stored in settings."""
        values = {
            key: str(value) for key in SETTINGS_OPTIONS if (value := getattr(self, key)) not in (None, DEFAULT_API)
        }
        return options.join_options(self.name, values)

    @property
    def vllm_options(self) -> dict[str, int | float | bool]:
        """The options that were given for vLLM, by vLLM's own names."""
        return {key: value for key in VLLM_OPTIONS if (value := getattr(self, key)) is not None}

    def get_served_name(self, card: ModelCard) -> str:
        """Return a model's name on the server: the option `model`, else the card's repository, else its name."""
        return self.model or (card.weights and card.weights.repo) or card.name

    def find_unsupported(self, method: Method) -> str | None:
        """Return the first feature of a method that this engine does not support; None if it supports all."""
        if self.name == "transformers":
            return None
        poolings = SUPPORTED_POOLINGS[self.name]
        unsupported = {
            f"{method.pooling} pooling": method.pooling not in poolings,
            f"a {method.kind} ranking": method.kind != "dense",
            "pooling over part of the tokens": method.span != "all",
            "a chosen layer": method.layer is not None,
            "bidirectional attention": method.attention != "own" and self.name != "vllm",
            "a chat template": method.chat and self.name == "endpoint",
            "a dot product (its vectors have length one)": method.similarity == "dot" and self.name == "vllm",
            "an appended end-of-sequence token": method.eos and self.name == "endpoint",
        }
        return next((feature for feature, needed in unsupported.items() if needed), None)


SUPPORTED_POOLINGS: dict[EngineName, tuple[str, ...]] = {
    "sentence-transformers": ("last", "first", "mean", "weighted", "model"),
    "vllm": ("last", "mean"),
    "endpoint": ("model",),
}


def parse_engine(text: str) -> Engine:
    """Parse the value of `--engine`."""
    name, option_values = options.split_options(text)
    if name not in ENGINE_NAMES:
        raise UsageError(f"there is no engine called {name!r}", suggest_names(name, ENGINE_NAMES))
    engine = options.apply_options(Engine(name), option_values, fixed=("name",), renamed=RENAMED_OPTIONS)
    for key in ("batch_size", "timeout", "max_attempts", "max_in_flight"):
        if getattr(engine, key) < 1:
            raise UsageError(f"--engine {text}: {key} is too small", f"give {key}=1 or more")
    allowed = {"endpoint": ENDPOINT_OPTIONS, "vllm": VLLM_OPTIONS}.get(name, ())
    if foreign := [key for key in option_values if key not in allowed]:
        next_step = f"its options: {', '.join(allowed)}" if allowed else f"write --engine {name}"
        raise UsageError(f"the engine {name} has no option {foreign[0]!r}", next_step)
    return engine
