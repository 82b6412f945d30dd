"""Training pairs without labels, for llm2ir: two crops of one text are a query and its positive.

Hard negatives are crops of other texts that BM25 ranks high for the query, chosen by the recipe's `[mining]` table.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.cards.recipe import Recipe
from retbench.errors import DataError
from retbench.retrievers.bm25 import BM25Index
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.hard_negatives import count_mining_ranks, select_negatives
from retbench.training.training_set import TrainingQuery

TEXTS_PER_CHUNK = 1024  # of one call of the tokenizer


@dataclass(frozen=True)
class CropBatchSource:
    """Batches of crops. `texts` are those that are long enough for two crops."""

    texts: Sequence[str]
    tokenizer: Any
    recipe: Recipe
    index: BM25Index | None

    @staticmethod
    def build(texts: Iterable[str], tokenizer: Any, recipe: Recipe) -> "CropBatchSource":
        """Keep the texts of at least twice `min_tokens`, and index them for hard negatives."""
        minimum = 2 * recipe.crop_settings.min_tokens
        long_texts = list(_keep_long_texts(dict.fromkeys(texts), tokenizer, minimum))
        if len(long_texts) < 2:
            raise DataError(f"fewer than two texts have {minimum} tokens, which crops need", "use a larger corpus")
        index = BM25Index(LexicalSettings(), long_texts) if recipe.contrastive.hard_negatives else None
        return CropBatchSource(long_texts, tokenizer, recipe, index)

    def __len__(self) -> int:
        return len(self.texts)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """Two crops of every text, and the crops of its hard negatives."""
        generators = [np.random.default_rng((self.recipe.seed, epoch, int(row))) for row in rows]
        queries = [self._draw_crop(int(row), generator) for row, generator in zip(rows, generators, strict=True)]
        positives = [self._draw_crop(int(row), generator) for row, generator in zip(rows, generators, strict=True)]
        picks = [
            (owner, row) for owner, hits in enumerate(self._draw_negatives(queries, rows, generators)) for row in hits
        ]
        negatives = [self._draw_crop(row, generators[owner]) for owner, row in picks]
        sources = np.array([*map(int, rows), *(row for _, row in picks)])
        owners = np.array([*range(len(rows)), *(owner for owner, _ in picks)])
        return ContrastiveBatch(queries, positives + negatives, owners, sources[None, :] == rows[:, None])

    def _draw_negatives(
        self, crops: list[str], rows: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> list[list[int]]:
        """The texts of each crop's hard negatives: `hard_negatives` of those that BM25 and `[mining]` select."""
        if self.index is None:
            return [[] for _ in crops]
        settings, count = self.recipe.mining, self.recipe.contrastive.hard_negatives
        ranking, drawn = self.index.search(crops, count_mining_ranks(settings, 1)), []
        for crop, row, hits, scores, generator in zip(
            crops, rows, ranking.rows, ranking.scores, generators, strict=True
        ):
            kept = list(select_negatives(TrainingQuery(crop, (int(row),)), hits, scores, settings))
            drawn.append([int(hit) for hit in generator.permutation(kept)[:count]] if len(kept) > count else kept)
        return drawn

    def _draw_crop(self, row: int, generator: np.random.Generator) -> str:
        ids, crops = _tokenize(self.tokenizer, [self.texts[row]])[0], self.recipe.crop_settings
        ratio = generator.uniform(crops.min_ratio, crops.max_ratio)
        length = min(len(ids), max(crops.min_tokens, round(ratio * len(ids))))
        start = int(generator.integers(len(ids) - length + 1))
        return str(self.tokenizer.decode(ids[start : start + length])).strip()


def _keep_long_texts(texts: Iterable[str], tokenizer: Any, minimum: int) -> Iterator[str]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, TEXTS_PER_CHUNK)):
        tokens = _tokenize(tokenizer, chunk)
        yield from (text for text, ids in zip(chunk, tokens, strict=True) if len(ids) >= minimum)


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
