"""A sentence-transformers model around a backbone that is already on the device."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.gpu import models


def build_sentence_transformer(model: Any, tokenizer: Any, limit: int, pooling: str = "lasttoken") -> Any:
    """Load the modules around a tiny backbone from a folder, then replace the backbone by `model`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    shape = (model.config.model_type, *models.TINY["tiny qwen2"][1:])
    with tempfile.TemporaryDirectory() as folder:
        models.build_model(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (Path(folder) / "chat_template.jinja").unlink(missing_ok=True)
        base: Any = Transformer(folder, max_seq_length=limit)
    for name, child in list(base.named_children()):
        if isinstance(child, PreTrainedModel):
            setattr(base, name, model)
    setattr(
        base, "processor" if hasattr(base, "processor") else "tokenizer", tokenizer
    )  # else it is a tokenizer of Qwen's class
    made = [base, Pooling(int(model.config.hidden_size), pooling), Normalize()]
    return SentenceTransformer(modules=made, device=str(models.DEVICE))
