"""The settings of an encoder that reads images. They are part of a key only where the collection has images."""

from pathlib import Path
from typing import Any

from retbench.cards.method import Method
from retbench.cards.model import ImagePixels, ModelCard
from retbench.cards.vision_config import compute_image_settings_digest, find_vision_kind
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.vision_tokenizer import VisionTokenizer, require_image_method
from retbench.engines.image_processing import PixelLimits, load_image_processor
from retbench.errors import InapplicableError, UsageError
from retbench.pipelines.models.overrides import Overrides


def collect_image_settings(
    card: ModelCard, folder: Path, method: Method, overrides: Overrides, with_images: bool
) -> dict[str, Any]:
    """Return the image settings of a specification; none for a collection of texts."""
    kind = find_vision_kind(folder)
    if kind and (with_images or kind == "towers"):
        require_image_method(method, kind)
        if overrides.dtype == "int8":
            raise InapplicableError(f"--set dtype=int8: {card.name} reads images here", "use float32 or bfloat16")
    if not with_images:
        if overrides.max_pixels is not None:
            raise InapplicableError(
                f"--set max_pixels={overrides.max_pixels}: {card.name} reads no images here", "leave max_pixels out"
            )
        return {}
    pixels = card.pixels or ImagePixels()
    settings = {"min_pixels": pixels.least, "max_pixels": overrides.max_pixels or pixels.most}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"image_processor": compute_image_settings_digest(folder), **given}


def uses_vision(folder: Path, spec: EncoderSpec) -> bool:
    """Whether the model is loaded with its vision tower."""
    return spec.image_processor is not None or find_vision_kind(folder) == "towers"


def check_workers(spec: EncoderSpec, is_remote: bool) -> None:
    """Refuse images for workers on other machines: they do not have the collection."""
    if is_remote and spec.image_processor:
        raise UsageError(
            "workers on other machines cannot read the images of a collection", "use the devices of this machine"
        )


def get_pixel_limits(spec: EncoderSpec) -> PixelLimits:
    """Return the pixel limits of a specification."""
    return PixelLimits(spec.min_pixels, spec.max_pixels)


def build_tokenizer(folder: Path, tokenizer: Any, spec: EncoderSpec) -> PromptTokenizer | VisionTokenizer:
    """Build what turns the rows of a collection into token ids, without loading weights."""
    prompts = PromptTokenizer(tokenizer, spec.method, spec.instruction)
    if not uses_vision(folder, spec):
        return prompts
    return VisionTokenizer(prompts, load_image_processor(folder, get_pixel_limits(spec)))
