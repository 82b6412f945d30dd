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
from retbench.engines.fingerprints import read_json
from retbench.errors import MissingError, UsageError

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # another process costs a minute to start and gains nothing here
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ITS_WORDS: dict[Pooling, str] = {"last": "LAST", "mean": "MEAN"}


@dataclass(frozen=True)
class VllmModel:
    """A loaded pooling engine."""

    engine: Any
    dimension: int
    longest: int  # tokens of a row

    def vectors(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector a row of token ids."""
        if (most := max(map(len, rows))) > self.longest:
            raise UsageError(
                f"a text of {most} tokens is longer than vLLM takes for this model ({self.longest})",
                f"give --set max_length={self.longest} or less, and room for the method's template",
            )
        prompts = [{"prompt_token_ids": row.tolist()} for row in rows]
        found = self.engine.embed(prompts, use_tqdm=False)
        return np.array([one.outputs.embedding for one in found], dtype=np.float32)


@contextmanager
def _out_of_its_sight() -> Iterator[None]:
    """On a CPU vLLM looks into every loaded module and stumbles over one of llvmlite, which bm25s brings by numba."""
    hidden = sys.modules.pop("llvmlite.binding.ffi", None)
    try:
        yield
    finally:
        if hidden:
            sys.modules["llvmlite.binding.ffi"] = hidden


def library() -> Any:
    """The package, with its own chatter off."""
    for name, value in QUIET.items():
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


def start(folder: Path, dtype: Dtype, longest: int, **wanted: Any) -> Any:
    """Its engine for a folder, in this process, for sequences up to `longest` tokens."""
    theirs = library()
    with _out_of_its_sight():
        return theirs.LLM(model=str(folder), dtype=dtype, max_model_len=longest, **wanted)


def load(folder: Path, dtype: Dtype, pooling: Pooling, attention: Attention, longest: int) -> VllmModel:
    """A folder behind vLLM's pooling runner, for texts up to `longest` tokens or as many as the model has positions."""
    longest = min(longest, _positions(folder) or longest)
    wanted: dict[str, Any] = {"hf_overrides": {"is_causal": False}} if attention == "bidirectional" else {}
    pooler = library().config.PoolerConfig(pooling_type=ITS_WORDS[pooling])
    engine = start(
        folder, dtype, longest, runner="pooling", convert="embed", enforce_eager=True, pooler_config=pooler, **wanted
    )
    return VllmModel(engine, int(engine.llm_engine.model_config.get_hidden_size()), longest)


def _positions(folder: Path) -> int | None:
    """How many positions the weights were made for; vLLM refuses to be asked for more."""
    config = read_json(folder / "config.json")
    found: int | None = config.get("text_config", config).get("max_position_embeddings")
    return found
