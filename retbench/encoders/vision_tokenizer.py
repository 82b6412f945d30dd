"""The tokenizer of a model that reads images: the tokens of a prompt, with those of an image in their place.

A prompt is tokenized once, with one token for the image, and cut to the length limit; then that token is repeated as
often as the image has tokens. So the limit counts texts, and the pixel limits bound images. Token counts, batches and
shards hold both kinds of tokens.

For CLIP and SigLIP a row is a text or an image. An image has no token ids there; zeros stand for the states of its
tower, so that batches are planned by the same rule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from retbench.cards.method import Method, Role
from retbench.cards.vision_config import VisionKind
from retbench.corpora.images import ImageSize, TextsWithImages
from retbench.encoders.prompt_tokenizer import TEXTS_PER_CHUNK, PromptTokenizer, TokenizedTexts, find_unknown_id
from retbench.encoders.token_ids import TokenIdBuffer
from retbench.engines.image_processing import ImageProcessor
from retbench.errors import InapplicableError, UsageError


@dataclass(frozen=True)
class VisionTokenizer:
    """A prompt tokenizer, and the image processor that knows how many tokens an image has."""

    text_prompts: PromptTokenizer
    processor: ImageProcessor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.text_prompts.tokenizer

    @cached_property
    def image_prompts(self) -> PromptTokenizer:
        """The prompts of rows with an image, if the method has templates for them."""
        method = self.text_prompts.method
        query, document = method.image_query or method.query, method.image_document or method.document
        return replace(self.text_prompts, method=replace(method, query=query, document=document))

    @cached_property
    def placeholder(self) -> str:
        """The tokens that stand for one image in a prompt."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(self.processor.placeholder_ids)))

    def tokenize(self, texts: Iterable[str], role: Role, limit: int) -> TokenizedTexts:
        """Token ids of all rows. A text longer than `limit` tokens is truncated and counted; an image never is."""
        images = texts.images if isinstance(texts, TextsWithImages) else None
        iterator, start, parts = iter(texts), 0, []
        with TokenIdBuffer() as ids:
            while chunk := list(islice(iterator, TEXTS_PER_CHUNK)):
                rows = np.arange(start, start + len(chunk))
                sizes = images.select(rows).read_sizes() if images else [None] * len(chunk)
                rows_of_ids, counts = self._tokenize_chunk(chunk, sizes, role, limit)
                ids.append(rows_of_ids)
                parts.append(counts)
                start += len(chunk)
            truncated, empty, unknown = (sum(column) for column in zip(*parts, strict=True))
            knows_all = find_unknown_id(self.tokenizer) is None
            return TokenizedTexts(
                ids.read_all(), ids.compute_offsets(), truncated, empty,
                unknown=None if knows_all else unknown, images=images,
            )  # fmt: skip

    def _tokenize_chunk(
        self, texts: Sequence[str], sizes: Sequence[ImageSize | None], role: Role, limit: int
    ) -> tuple[list[list[int]], tuple[int, int, int]]:
        """Return the token ids of some rows, and how many of them are truncated, empty, and tokens are unknown."""
        rows: list[list[int]] = [[] for _ in texts]
        counts = np.zeros(3, dtype=int)
        has_image = [size is not None for size in sizes]
        for with_image, prompts in ((False, self.text_prompts), (True, self.image_prompts)):
            positions = [number for number, found in enumerate(has_image) if found == with_image]
            if with_image and self.processor.kind == "towers":
                for number in positions:
                    rows[number] = self._tokenize_tower_image(texts[number], role)
            elif positions:
                start = self.placeholder if with_image else ""
                tokens = prompts.tokenize([start + self._escape(texts[n]) for n in positions], role, limit)
                counts += (tokens.truncated, tokens.empty, tokens.unknown or 0)
                for number, found_ids in zip(positions, tokens, strict=True):
                    rows[number] = self._repeat_image_token(found_ids.tolist(), sizes[number], role, limit)
        return rows, (int(counts[0]), int(counts[1]), int(counts[2]))

    def _tokenize_tower_image(self, text: str, role: Role) -> list[int]:
        if text.strip():
            raise InapplicableError(
                f"a {role} has an image and a text, and this model has a vector of either, not of both",
                "read only the texts (--set images=ignore), or give a collection whose rows have one of them",
            )
        return [0] * self.processor.count_tokens(0, 0)

    def _repeat_image_token(self, ids: list[int], size: ImageSize | None, role: Role, limit: int) -> list[int]:
        if size is None:
            return ids
        image_token = self.processor.image_token_id
        if ids.count(image_token) != 1:
            raise UsageError(
                f"the limit of {limit} tokens for a {role} cuts its image out of the prompt",
                "give a larger --set max_length; the tokens of an image do not count",
            )
        place = ids.index(image_token)
        return ids[:place] + [image_token] * self.processor.count_tokens(*size) + ids[place + 1 :]

    def show_tokens(self, ids: list[int]) -> str:
        """Return the text of some token ids, with the tokens of an image as one name and their number."""
        if self.processor.kind == "towers":
            return f"(image) x {len(ids)}"
        image_token = self.processor.image_token_id
        count = ids.count(image_token)
        if count == 0:
            return str(self.tokenizer.decode(ids))
        place = ids.index(image_token)
        before, after = (self.tokenizer.decode(part) for part in (ids[: place + 1], ids[place + count :]))
        return f"{before} x {count} {after}"

    def _escape(self, text: str) -> str:
        """Break up the name of the image token in a text: as a token it would stand for an image that is not there."""
        if not self.processor.placeholder_ids:
            return text
        name = self.tokenizer.convert_ids_to_tokens(self.processor.image_token_id)
        return text.replace(name, f"{name[:1]} {name[1:]}")


def require_image_method(method: Method, kind: VisionKind) -> None:
    """Refuse a method that cannot be followed on images."""
    templates = (method.query, method.document, method.image_query or "", method.image_document or "")
    problems = {
        f"{method.kind} rankings weight the words of texts": method.kind not in ("dense", "multi-vector"),
        "it attends in both directions": method.attention != "own",
        "it pools another layer than the last": method.layer is not None,
        "it reads its input twice": any(template.count("{text}") > 1 for template in templates),
        "it pools only the text": method.span != "all",
        "it cuts documents to words": method.document_words is not None,
        "its pooling is that of the model's own modules": method.pooling == "model"
        and kind == "decoder"
        and method.late_interaction is None,
        "this model has vectors of its own": method.pooling != "model" and kind == "towers",
    }
    if problem := next((problem for problem, found in problems.items() if found), None):
        step = "--method as-published" if kind == "towers" else "--method promptreps, last or mean"
        raise InapplicableError(f"method {method.name} cannot be used on images: {problem}", f"use {step}")
