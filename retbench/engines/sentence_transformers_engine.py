"""sentence-transformers as an engine (extra `st`): published embedders with their own modules, or a bare model.

Token ids are ours. Left alone it wraps plain text in a bare decoder's chat template without a word; the template is
taken away here, and what it would read of a plain text is checked by decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retbench.cards.method import Pooling
from retbench.cards.model import Dtype
from retbench.engines.padding import pad_rows
from retbench.errors import DataError, MissingError, UsageError

POOLING_MODES: dict[Pooling, str] = {"last": "lasttoken", "first": "cls", "mean": "mean", "weighted": "weightedmean"}
PROBE = "a plain text is read as it stands"


@dataclass(frozen=True)
class SentenceTransformersModel:
    """Its modules, and the pooling in place of theirs where a method asks for one."""

    modules: Any
    pooling: Any | None
    device: torch.device

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.modules.get_embedding_dimension())

    @torch.inference_mode()
    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One vector a row of token ids."""
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
    """A folder as sentence-transformers loads it."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling as ItsPooling
    except ImportError as problem:
        raise MissingError("sentence-transformers is not installed", "pip install 'retbench[st]'") from problem
    if pooling == "model" and not (folder / "modules.json").is_file():
        raise UsageError(
            f"{folder.name} is no sentence-transformers model: it has no modules.json and so no pooling of its own",
            "use --method last or mean",
        )
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
        modules, ItsPooling(modules[0].get_embedding_dimension(), pooling_mode=POOLING_MODES[pooling]), device
    )


def _check_no_chat_template(modules: Any) -> None:
    ids = modules.preprocess([PROBE])["input_ids"][0]
    read = modules.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if read.lower() != PROBE:
        raise DataError(
            f"sentence-transformers reads {read!r} for {PROBE!r}",
            "a chat template is in the way: use --engine transformers",
        )
