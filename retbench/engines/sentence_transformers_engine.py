"""sentence-transformers as an engine (extra `st`): published embedders with their own modules, or a bare model.

It gets our token ids. Without notice it would apply the chat template of a plain decoder to every text. So the template
is removed here, and a test text is tokenized and decoded to verify that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retbench.cards.method import Pooling
from retbench.cards.model import Dtype
from retbench.engines import model_loader
from retbench.engines.padding import pad_rows
from retbench.errors import DataError, MissingError, UsageError
from retbench.system.installation import suggest_extra

POOLING_MODES: dict[Pooling, str] = {"last": "lasttoken", "first": "cls", "mean": "mean", "weighted": "weightedmean"}
PROBE = "a plain text is read as it stands"


@dataclass(frozen=True)
class SentenceTransformersModel:
    """A sentence-transformers model, and the pooling that replaces its own if the method sets one."""

    modules: Any
    pooling: Any | None
    device: torch.device

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.modules.get_embedding_dimension())

    @property
    def dtype(self) -> str:
        """The dtype of the loaded weights."""
        return str(next(self.modules.parameters()).dtype).removeprefix("torch.")

    @torch.inference_mode()
    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector per row of token ids."""
        padded = pad_rows(rows)
        mask = padded.token_mask.long()
        features = {"input_ids": padded.ids.to(self.device), "attention_mask": mask.to(self.device)}
        if self.pooling is None:
            return np.asarray(self.modules(features)["sentence_embedding"].float().cpu().numpy())
        states = self.modules[0](features)
        return np.asarray(self.pooling(states)["sentence_embedding"].float().cpu().numpy())


def load_sentence_transformers_model(
    folder: Path, dtype: Dtype, device: torch.device, pooling: Pooling
) -> SentenceTransformersModel:
    """Load a folder with sentence-transformers."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
    except ImportError as problem:
        raise MissingError("sentence-transformers is not installed", suggest_extra("st")) from problem
    if pooling == "model" and not (folder / "modules.json").is_file():
        raise UsageError(
            f"{folder.name} is not a sentence-transformers model: it has no modules.json and no pooling",
            "use --method last or mean",
        )
    if not getattr(model_loader.load_config(folder), "is_encoder_decoder", False):
        model_loader.load_text_model(folder, dtype)  # only to refuse missing weights: the library makes them random
    modules: Any = SentenceTransformer(
        str(folder),
        device=str(device),
        model_kwargs={"dtype": getattr(torch, dtype)},
        processor_kwargs={"chat_template": None},
    )
    modules.eval()
    _check_no_chat_template(modules)
    if pooling == "model":
        return SentenceTransformersModel(modules, None, device)
    return SentenceTransformersModel(
        modules, PoolingModule(modules[0].get_embedding_dimension(), pooling_mode=POOLING_MODES[pooling]), device
    )


def _check_no_chat_template(modules: Any) -> None:
    ids = modules.preprocess([PROBE])["input_ids"][0]
    decoded = modules.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if decoded.lower() != PROBE:
        raise DataError(
            f"sentence-transformers changes the text {PROBE!r} to {decoded!r}",
            "it applies a chat template: use --engine transformers",
        )
