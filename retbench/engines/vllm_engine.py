"""vLLM as an engine (extra `vllm`), in this process and with our token ids: start-up and the pooling runner."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from retbench.cards.method import Method, Pooling
from retbench.cards.model import Dtype
from retbench.engines import weights_cache
from retbench.engines.device import get_device
from retbench.engines.fingerprints import read_json_object
from retbench.errors import MissingError, UsageError
from retbench.system.installation import suggest_extra

ENVIRONMENT_DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a separate process takes a minute to start and has no advantage here
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
POOLING_TYPES: dict[Pooling, str] = {"last": "LAST", "mean": "MEAN"}


@dataclass(frozen=True)
class VllmModel:
    """A model in vLLM's pooling runner."""

    engine: Any
    dimension: int
    max_length: int  # of a row, in tokens

    @property
    def dtype(self) -> str:
        """The dtype of the loaded weights."""
        return str(self.engine.llm_engine.model_config.dtype).removeprefix("torch.")

    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector per row of token ids."""
        if (longest := max(map(len, rows))) > self.max_length:
            raise UsageError(
                f"a text has {longest} tokens, but vLLM allows {self.max_length} for this model",
                f"give --set max_length={self.max_length} or less; the method's template also needs tokens",
            )
        prompts = [{"prompt_token_ids": row.tolist()} for row in rows]
        outputs = self.engine.encode(prompts, pooling_task="embed", use_tqdm=False)  # tensors; `embed` makes lists
        return np.stack([output.outputs.data.float().cpu().numpy() for output in outputs])


@contextmanager
def _hide_llvmlite() -> Iterator[None]:
    """Hide a module of llvmlite (bm25s loads it through numba): on a CPU, vLLM inspects all modules and fails on it."""
    module = sys.modules.pop("llvmlite.binding.ffi", None)
    try:
        yield
    finally:
        if module:
            sys.modules["llvmlite.binding.ffi"] = module


def import_vllm() -> Any:
    """Import the package vllm, with its messages and statistics off."""
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        import vllm.config
        import vllm.sampling_params
    except ImportError as problem:
        raise MissingError(
            "vllm is not installed", f"make an environment of its own and there: {suggest_extra('vllm')}"
        ) from problem
    return vllm


def start_engine(folder: Path, dtype: Dtype, max_length: int, **options: Any) -> Any:
    """Start vLLM for a folder, in this process, for sequences of up to `max_length` tokens.

    On a GPU it compiles the model and records CUDA graphs, unless `enforce_eager` is given.
    """
    vllm = import_vllm()
    weights_cache.verify_files(folder)
    with _hide_llvmlite():
        options = {"enforce_eager": get_device().type == "cpu", **options}
        return vllm.LLM(model=str(folder), dtype=dtype, max_model_len=max_length, **options)


def load_vllm_model(
    folder: Path,
    dtype: Dtype,
    method: Method,
    max_length: int,
    engine_options: Mapping[str, Any] = MappingProxyType({}),
) -> VllmModel:
    """Load a folder in vLLM's pooling runner, for texts of up to `max_length` tokens or the model's own maximum."""
    max_length = min(max_length, _read_max_positions(folder) or max_length)
    options = dict(engine_options)
    if method.attention == "bidirectional":
        options["hf_overrides"] = {"is_causal": False}
    pooler = import_vllm().config.PoolerConfig(pooling_type=POOLING_TYPES[method.pooling])
    engine = start_engine(folder, dtype, max_length, runner="pooling", convert="embed", pooler_config=pooler, **options)
    return VllmModel(engine, int(engine.llm_engine.model_config.get_hidden_size()), max_length)


def _read_max_positions(folder: Path) -> int | None:
    """The maximum number of positions of the model; vLLM refuses a larger value."""
    config = read_json_object(folder / "config.json")
    max_positions: int | None = config.get("text_config", config).get("max_position_embeddings")
    return max_positions
