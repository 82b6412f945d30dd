"""The method of a ColQwen model, read from its folder: a vector for each token of a page image and of a question.

Two kinds of folders are followed, told by the architecture in config.json. Those of transformers
(`ColQwen2ForRetrieval`) hold the vision-language model below `vlm`; its authors' class numbers the tokens of an image
one after the other, and ends a question with a line break. Those of colpali-engine (`ColQwen2`, `ColQwen2_5`) are the
vision-language model with one more layer; they number by row and column, and add no line break. In both, ten padding
tokens after a question are part of it, and a text among the documents is read like a question.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards.method import ImagePositions
from retbench.cards.published_modules import read_architectures, read_optional_object
from retbench.cards.published_sparse import build_folder_error
from retbench.cards.published_vectors import LateInteraction

AUGMENTATION_TOKENS = 10
PADDING_TOKEN = "<|endoftext|>"  # noqa: S105  # of Qwen's tokenizers, where the folder names none
QUERY_PREFIX = "Query: "
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_PROMPT = f"<|im_start|>user\n{PLACEHOLDER}Describe the image.<|im_end|><|endoftext|>"


@dataclass(frozen=True)
class PageRetrieverLayout:
    """What differs between the folders: the projection's name among the weights, image positions, a question's end."""

    projection: str
    image_positions: ImagePositions
    query_end: str


LAYOUTS = {
    "ColQwen2ForRetrieval": PageRetrieverLayout("embedding_proj_layer", "sequential", "\n"),
    "ColQwen2": PageRetrieverLayout("custom_text_proj", "grid", ""),
    "ColQwen2_5": PageRetrieverLayout("custom_text_proj", "grid", ""),
}


def find_page_retriever(folder: Path) -> PageRetrieverLayout | None:
    """Return the layout of a ColQwen folder; None for another model."""
    return next((LAYOUTS[name] for name in read_architectures(folder) if name in LAYOUTS), None)


def read_page_retriever(folder: Path, layout: PageRetrieverLayout) -> dict[str, Any]:
    """Return the fields of the method besides its name. The folder's own processor settings may change the prompts."""
    settings = read_optional_object(folder / "processor_config.json")
    padding = read_optional_object(folder / "tokenizer_config.json").get("pad_token") or PADDING_TOKEN
    padding = padding["content"] if isinstance(padding, dict) else str(padding)
    prefix = settings.get("query_prefix") or QUERY_PREFIX
    query = f"{prefix}{{text}}{padding * AUGMENTATION_TOKENS}{layout.query_end}"
    image = (settings.get("visual_prompt_prefix") or IMAGE_PROMPT).replace(PLACEHOLDER, "{text}")
    if image.count("{text}") != 1:
        raise build_folder_error(folder, f"its prompt of an image has another place for the image: {image!r}")
    return {
        "kind": "multi-vector", "pooling": "model", "similarity": "cosine", "late_interaction": LateInteraction(),
        "title": "a vector for each token of a page image and of a question, projected as in the folder",
        "query": query, "document": query, "image_query": image, "image_document": image, "cut": "text",
        "image_positions": layout.image_positions,
    }  # fmt: skip
