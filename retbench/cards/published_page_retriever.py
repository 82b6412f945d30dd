"""The method of a ColQwen or ColPali model, read from its folder: a vector for each token of a page or a question.

Two kinds of folders are followed, told by the architecture in config.json. Those of transformers
(`ColQwen2ForRetrieval`, `ColPaliForRetrieval`) hold the vision-language model below `vlm`, and end a question with a
line break. Those of colpali-engine (`ColQwen2`, `ColQwen2_5`, `ColPali`) are the vision-language model with one more
layer, and add no line break. Of ColQwen2 the first number the tokens of an image one after the other, the second by row
and column. In all, ten padding tokens after a question are part of it, and a text among the documents is read like a
question.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards.method import ImagePositions
from retbench.cards.published_modules import read_architectures, read_optional_object
from retbench.cards.published_sparse import build_folder_error
from retbench.cards.published_vectors import LateInteraction

AUGMENTATION_TOKENS = 10
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class PagePrompts:
    """The prompts of a family: of a text (`question`) and of an image (`page`).

    The other fields fill them. The folder's processor settings may have another `prefix` or `image`, and its tokenizer
    another `padding` or `bos`. `special_tokens` says whether the tokenizer adds its own around a prompt.
    """

    question: str
    page: str
    prefix: str
    image: str
    padding: str
    bos: str = ""
    special_tokens: bool = True


@dataclass(frozen=True)
class PageRetrieverLayout:
    """What differs between the folders: the prompts, the name of the projection among the weights, what stands before
    the names of all other weights, and the positions of the tokens of an image."""

    prompts: PagePrompts
    projection: str
    weights_prefix: str = ""
    image_positions: ImagePositions = "grid"


QWEN = PagePrompts(
    question="{prefix}{text}{padding}",
    page="{image}",
    prefix="Query: ",
    image=f"<|im_start|>user\n{PLACEHOLDER}Describe the image.<|im_end|><|endoftext|>",
    padding="<|endoftext|>",
)
PALI = PagePrompts(
    question="{bos}{prefix}{text}{padding}",
    page="{text}{bos}{bos}{image}\n",  # one <bos> of colpali-engine's prompt, one that PaliGemma's processor adds
    prefix="Query: ",
    image="Describe the image.",
    padding="<pad>",
    bos="<bos>",
    special_tokens=False,
)
QWEN_OF_TRANSFORMERS = replace(QWEN, question=f"{QWEN.question}\n")
PALI_OF_TRANSFORMERS = replace(PALI, question=f"{PALI.question}\n", page="{text}{bos}{image}\n", prefix="Question: ")
LAYOUTS = {
    "ColQwen2ForRetrieval": PageRetrieverLayout(QWEN_OF_TRANSFORMERS, "embedding_proj_layer", "vlm.", "sequential"),
    "ColPaliForRetrieval": PageRetrieverLayout(PALI_OF_TRANSFORMERS, "embedding_proj_layer", "vlm."),
    "ColQwen2": PageRetrieverLayout(QWEN, "custom_text_proj"),
    "ColQwen2_5": PageRetrieverLayout(QWEN, "custom_text_proj"),
    "ColPali": PageRetrieverLayout(PALI, "custom_text_proj", "model.model."),
}
# what an adapter of colpali-engine makes of a plain vision-language model, by the type in its config.json
ARCHITECTURE_BY_TYPE = {"qwen2_vl": "ColQwen2", "qwen2_5_vl": "ColQwen2_5", "paligemma": "ColPali"}


def find_page_retriever(folder: Path) -> PageRetrieverLayout | None:
    """Return the layout of a ColQwen or ColPali folder; None for another model."""
    return next((LAYOUTS[name] for name in read_architectures(folder) if name in LAYOUTS), None)


def read_page_retriever(folder: Path, layout: PageRetrieverLayout) -> dict[str, Any]:
    """Return the fields of the method besides its name. The folder's own processor settings may change the prompts."""
    prompts = _read_prompts(folder, layout.prompts)
    if prompts.page.count("{text}") != 1:
        raise build_folder_error(folder, f"its prompt of an image has another place for the image: {prompts.page!r}")
    fields = {
        "kind": "multi-vector", "pooling": "model", "similarity": "cosine", "late_interaction": LateInteraction(),
        "title": "a vector for each token of a page image and of a question, projected as in the folder",
        "query": prompts.question, "document": prompts.question, "image_query": prompts.page,
        "image_document": prompts.page, "cut": "text", "image_positions": layout.image_positions,
    }  # fmt: skip
    return fields if prompts.special_tokens else {**fields, "special_tokens": False}


def _read_prompts(folder: Path, prompts: PagePrompts) -> PagePrompts:
    """The prompts of a folder, filled with all but the text and the image."""
    settings = read_optional_object(folder / "processor_config.json")
    tokens = read_optional_object(folder / "tokenizer_config.json")
    filled = {
        "{prefix}": settings.get("query_prefix") or prompts.prefix,
        "{image}": (settings.get("visual_prompt_prefix") or prompts.image).replace(PLACEHOLDER, "{text}"),
        "{padding}": (_read_token(tokens, "pad_token") or prompts.padding) * AUGMENTATION_TOKENS,
        "{bos}": _read_token(tokens, "bos_token") or prompts.bos,
    }
    question, page = prompts.question, prompts.page
    for name, text in filled.items():
        question, page = question.replace(name, text), page.replace(name, text)
    return replace(prompts, question=question, page=page)


def _read_token(settings: dict[str, Any], name: str) -> str:
    token = settings.get(name) or ""
    return str(token["content"]) if isinstance(token, dict) else str(token)
