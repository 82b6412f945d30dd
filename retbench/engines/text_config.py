"""The config of a model's text part: what it says without loading the model, and without importing torch."""

import json
from pathlib import Path
from typing import Any

from retbench.cards.vision_config import get_language_settings, is_prefix_model

# Decoders that need no look at transformers' list of masked language models, which takes seconds to import.
DECODER_TYPES = frozenset(
    ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "gpt_neox")
)
T5_TYPES = ("t5", "mt5", "umt5")  # an encoder and a decoder; of these only the encoder is loaded


def read_text_settings(folder: Path) -> dict[str, Any]:
    """The settings in config.json; those of a text part take precedence."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {**config, **get_language_settings(config)}


def has_text_config(folder: Path) -> bool:
    """Whether the model is multimodal. Only its text part is loaded."""
    config = json.loads((folder / "config.json").read_text())
    return get_language_settings(config) is not config


def is_causal(folder: Path) -> bool:
    """Whether the model attends only to earlier tokens, by its config. Masked language models are bidirectional."""
    config = read_text_settings(folder)
    if is_prefix_model(config) or config.get("model_type") in T5_TYPES:
        return False
    is_marked_causal = config.get("is_causal", True) is not False and not config.get("use_bidirectional_attention")
    return is_marked_causal and not _is_masked_lm(config.get("model_type"), config.get("auto_map", {}))


def _is_masked_lm(model_type: Any, auto_map: Any) -> bool:
    if isinstance(auto_map, dict) and "AutoModelForMaskedLM" in auto_map:
        return True
    if not isinstance(model_type, str) or model_type in DECODER_TYPES:  # transformers refuses a type that is no text
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
