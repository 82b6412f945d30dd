"""vLLM as an engine (extra `vllm`), in this process, with token ids that are ours: here its pooling runner."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.method import Attention, Pooling
from retbench.cards.model import Dtype
from retbench.engines.fingerprints import read_json_object
from retbench.errors import MissingError, UsageError

ENVIRONMENT_DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # another process costs a minute to start and gains nothing here
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
POOLING_TYPES: dict[Pooling, str] = {"last": "LAST", "mean": "MEAN"}


@dataclass(frozen=True)
class VllmModel:
    """A loaded pooling engine."""

    engine: Any
    dimension: int
    max_length: int  # tokens of a row

    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector a row of token ids."""
        if (most := max(map(len, rows))) > self.max_length:
            raise UsageError(
                f"a text of {most} tokens is longer than vLLM takes for this model ({self.max_length})",
                f"give --set max_length={self.max_length} or less, and room for the method's template",
            )
        prompts = [{"prompt_token_ids": row.tolist()} for row in rows]
        found = self.engine.embed(prompts, use_tqdm=False)
        return np.array([one.outputs.embedding for one in found], dtype=np.float32)


@contextmanager
def _hide_llvmlite() -> Iterator[None]:
    """On a CPU vLLM looks into every loaded module and stumbles over one of llvmlite, which bm25s brings by numba."""
    hidden = sys.modules.pop("llvmlite.binding.ffi", None)
    try:
        yield
    finally:
        if hidden:
            sys.modules["llvmlite.binding.ffi"] = hidden


def import_vllm() -> Any:
    """The package, with its own chatter off."""
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        import vllm.config
        import vllm.sampling_params
    except ImportError as problem:
        raise MissingError(
            "vllm is not installed", "pip install 'retbench[vllm]' in an environment of its own"
        ) from problem
    return vllm


def start_engine(folder: Path, dtype: Dtype, max_length: int, **wanted: Any) -> Any:
    """Its engine for a folder, in this process, for sequences up to `longest` tokens."""
    theirs = import_vllm()
    with _hide_llvmlite():
        return theirs.LLM(model=str(folder), dtype=dtype, max_model_len=max_length, **wanted)


def load_vllm_model(folder: Path, dtype: Dtype, pooling: Pooling, attention: Attention, max_length: int) -> VllmModel:
    """A folder behind vLLM's pooling runner, for texts up to `longest` tokens or as many as the model has positions."""
    max_length = min(max_length, _read_max_positions(folder) or max_length)
    wanted: dict[str, Any] = {"hf_overrides": {"is_causal": False}} if attention == "bidirectional" else {}
    pooler = import_vllm().config.PoolerConfig(pooling_type=POOLING_TYPES[pooling])
    engine = start_engine(
        folder, dtype, max_length, runner="pooling", convert="embed", enforce_eager=True, pooler_config=pooler, **wanted
    )
    return VllmModel(engine, int(engine.llm_engine.model_config.get_hidden_size()), max_length)


def _read_max_positions(folder: Path) -> int | None:
    """How many positions the weights were made for; vLLM refuses to be asked for more."""
    config = read_json_object(folder / "config.json")
    found: int | None = config.get("text_config", config).get("max_position_embeddings")
    return found
