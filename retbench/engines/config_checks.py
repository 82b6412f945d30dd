"""Checks of a model folder's config.json: what transformers would raise for it, or what would never end.

transformers builds the model that the config describes before it looks at the weights, so a config with a million
layers takes hours, and one with a wide vocabulary fills the memory with random weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retbench.engines.weight_sizes import read_shapes
from retbench.errors import DataError, RetbenchError, convert_to_resource_error

SIZE_FIELDS = (
    "hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads", "num_key_value_heads",
    "d_model", "n_embd", "n_head",
)  # fmt: skip
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "num_layers")
MAX_POSITIONS = 1 << 30
CHECK_CONFIG = "check its config.json, copy or fetch the folder again, or use a newer transformers"
REPEATED_LAYERS = 16  # ALBERT uses the weights of one layer again and again


def check_config_sizes(folder: Path, settings: dict[str, Any]) -> None:
    """Raise an error for counts that the stored weights contradict."""
    shapes = read_shapes(folder)
    if not shapes:
        return
    largest = max((max(shape, default=0) for shape in shapes), default=0)
    limits = {
        **dict.fromkeys(SIZE_FIELDS, largest),
        **dict.fromkeys(LAYER_FIELDS, REPEATED_LAYERS * len(shapes)),
        "max_position_embeddings": MAX_POSITIONS,
    }
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    for part in parts:
        for name, limit in limits.items():
            if type(part.get(name)) is int and part[name] > limit:
                raise DataError(
                    f"{folder / 'config.json'} has {name} {part[name]:.6g}, which its weights contradict",
                    "copy or fetch the folder again",
                )


@contextmanager
def explain_load_errors(path: Path, next_step: str = CHECK_CONFIG) -> Iterator[None]:
    """Wraps loading by transformers: what it raises for a config becomes an error with the next step."""
    try:
        yield
    except (RetbenchError, ImportError, MemoryError):
        raise
    except Exception as problem:  # transformers raises whatever a wrong type or a missing name leads to
        if convert_to_resource_error(problem):
            raise
        message = " ".join(str(problem).split())
        raise DataError(
            f"transformers cannot load {path}: {type(problem).__name__}: {message[:300]}", next_step
        ) from problem
