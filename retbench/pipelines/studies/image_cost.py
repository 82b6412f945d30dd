"""Estimate the tokens of a collection's images from the cards of its suite and of a model that reads images."""

from collections.abc import Mapping
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard

PIXELS_PER_TOKEN = 28 * 28  # of Qwen-VL models; the other kinds resize every image to the same number of tokens


def count_image_tokens(card: ModelCard, task: TaskCard, changes: Mapping[str, Any]) -> float:
    """Tokens of images per document, with the values of `--set`; 0 for a model of texts or a suite without images."""
    suite = catalog.load_suites().cards.get(task.suite)
    ignored = changes.get("images", task.images) == "ignore"
    if suite is None or suite.image_pixels is None or card.image_tokens is None or ignored:
        return 0.0
    pixels: int = min(suite.image_pixels, changes.get("max_pixels", suite.image_pixels))
    return suite.image_share * min(card.image_tokens, pixels / PIXELS_PER_TOKEN)
