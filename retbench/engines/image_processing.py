"""From images to pixels and their number of tokens, by the model's own image processor in transformers.

Always the processor that computes with Pillow: the one with torchvision resizes a little differently, and a score must
not depend on whether torchvision is installed. The number of tokens follows from width and height alone, so batches are
planned before an image is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retbench.cards.vision_config import VisionKind, find_vision_kind, is_prefix_model
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError, InapplicableError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PALIGEMMA_IMAGE_TOKEN = 256000  # where config.json leaves the default out, as below
PATCH_SIZES = {"clip": 32, "siglip": 16, "paligemma": 14}
TOKENS_OF_PLACEHOLDER = ("vision_start_token_id", "image_token_id", "vision_end_token_id")


class PixelLimits(NamedTuple):
    """The smallest and the largest number of pixels to which an image is resized; None: as the folder says."""

    least: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class ImageProcessor:
    """The image processor of one model.

    `fixed_tokens` is the number of tokens of every image, where it does not follow from its size. `placeholder_ids`
    stand for an image in a prompt of a decoder; the one in the middle is repeated.
    """

    processor: Any
    kind: VisionKind
    fixed_tokens: int | None
    placeholder_ids: tuple[int, ...] = ()

    @property
    def image_token_id(self) -> int:
        """The token that is repeated in the place of an image."""
        return self.placeholder_ids[len(self.placeholder_ids) // 2]

    def count_tokens(self, width: int, height: int) -> int:
        """Return the number of tokens that an image becomes."""
        if self.fixed_tokens is not None:
            return self.fixed_tokens
        try:
            patches = self.processor.get_number_of_image_patches(height, width, {})
        except ValueError as problem:
            raise DataError(
                f"an image of {width:,} x {height:,} pixels: {problem}", "crop it, or leave its row out"
            ) from problem
        return int(patches) // int(self.processor.merge_size) ** 2

    def process(self, images: "Sequence[Image]") -> "dict[str, torch.Tensor]":
        """Return the pixels of some images, as the model's forward pass takes them."""
        return dict(self.processor(images=list(images), return_tensors="pt"))


def load_image_processor(folder: Path, limits: PixelLimits = PixelLimits()) -> ImageProcessor:  # noqa: B008  a value
    """Load the image processor of a folder."""
    from transformers import AutoImageProcessor

    config, kind = read_json_object(folder / "config.json"), find_vision_kind(folder)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        line = str(problem).strip().partition("\n")[0]
        raise DataError(
            f"{folder} has no image processor that can be read: {line}",
            "copy or fetch the folder again, with its preprocessor_config.json",
        ) from problem
    whole = config.get("vlm_config", config)
    if kind == "towers" or is_prefix_model(config):
        if limits != PixelLimits():
            raise InapplicableError(
                f"{folder.name} resizes every image to the size that it was trained with",
                "leave --set max_pixels out",
            )
        placeholder = (int(whole.get("image_token_index", PALIGEMMA_IMAGE_TOKEN)),) if kind == "decoder" else ()
        return ImageProcessor(processor, kind or "decoder", _count_patches(processor, whole), placeholder)
    processor.size = _limit_size(processor.size, limits)
    return ImageProcessor(processor, "decoder", None, tuple(int(whole[name]) for name in TOKENS_OF_PLACEHOLDER))


def _limit_size(size: Any, limits: PixelLimits) -> Any:
    least, most = limits.least or size["shortest_edge"], limits.most or size["longest_edge"]
    return type(size)(shortest_edge=min(least, most), longest_edge=most)


def _count_patches(processor: Any, config: dict[str, Any]) -> int:
    """Return the number of states of an image tower: a grid of patches, in CLIP after a class token."""
    if config["model_type"] == "siglip2":
        return int(processor.max_num_patches)
    vision = config.get("vision_config") or {}
    size, patch = int(vision.get("image_size", 224)), int(vision.get("patch_size", PATCH_SIZES[config["model_type"]]))
    class_tokens = 1 if config["model_type"] == "clip" else 0
    return int((size // patch) ** 2 + class_tokens)
