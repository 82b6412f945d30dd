"""Which models read images, told from config.json without importing torch.

Two families are supported. `towers` (CLIP, SigLIP) have a text and an image tower, and a vector from each of them.
A `decoder` (Qwen-VL, ColQwen, ColPali) has a vision tower whose outputs replace tokens of the prompt. The first is
always loaded whole; of the second only the text part is loaded, unless the collection has images.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from retbench.cards.model import DefaultMethod, ModelCard
from retbench.cards.published_modules import read_optional_object
from retbench.cards.published_page_retriever import find_page_retriever

VisionKind = Literal["towers", "decoder"]
TYPES: dict[str, VisionKind] = {
    "clip": "towers",
    "siglip": "towers",
    "siglip2": "towers",
    "qwen2_vl": "decoder",
    "qwen2_5_vl": "decoder",
    "qwen3_vl": "decoder",
    "colqwen2": "decoder",
    "colpali": "decoder",
}
PALIGEMMA = "paligemma"
TEXT_POSITIONS = {"clip": 77, "siglip": 64, "siglip2": 64}  # where config.json leaves the default out
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROVENANCE_KEYS = ("transformers_version", "processor_class", "_processor_class", "auto_map", "image_processor_type")


def find_vision_kind(folder: Path) -> VisionKind | None:
    """Return how a model reads images; None for a model of texts, and for one that is not supported."""
    model_type = str(read_optional_object(folder / "config.json").get("model_type"))
    if model_type == PALIGEMMA:  # only ColPali: no prompt of PaliGemma itself was made for retrieval
        return "decoder" if find_page_retriever(folder) else None
    return TYPES.get(model_type)


def is_prefix_model(config: dict[str, Any]) -> bool:
    """Whether a model reads its whole prompt in both directions: PaliGemma, whose config.json does not say so."""
    return bool(config.get("vlm_config", config).get("model_type") == PALIGEMMA)


def get_language_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the language model in a config; those of a multimodal model are a part of it."""
    whole: dict[str, Any] = config.get("vlm_config", config)
    language: dict[str, Any] = whole.get("text_config", whole)
    return language


def describe_bare_model(card: ModelCard, folder: Path) -> ModelCard:
    """Return the card of a model without a published method: `mean`; of two towers, their own vectors in float32, up to
    the length of the text tower."""
    if find_vision_kind(folder) != "towers":
        return replace(card, method=DefaultMethod("mean"))
    config = read_optional_object(folder / "config.json")
    positions = (config.get("text_config") or {}).get("max_position_embeddings") or TEXT_POSITIONS[config["model_type"]]
    return replace(
        card,
        method=DefaultMethod("as-published"),
        max_length=min(int(positions), card.max_length or int(positions)),
        dtype=card.dtype or "float32",
    )


def compute_image_settings_digest(folder: Path) -> str:
    """Digest the folder's settings of the image processor: resolution, crop, mean and deviation of the pixels."""
    settings = {name: _drop_provenance(read_optional_object(folder / name)) for name in PROCESSOR_FILES}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _drop_provenance(value: object) -> object:
    """Leave out what changes when the same settings are saved again."""
    if isinstance(value, dict):
        return {key: _drop_provenance(item) for key, item in value.items() if key not in PROVENANCE_KEYS}
    return value
