"""Training pairs without labels, for llm2ir: two crops of one text are a query and its positive.

Hard negatives are crops of other texts that BM25 ranks high for the query.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.cards.model import LexicalSettings
from retbench.cards.recipe import ContrastiveSettings, CropSettings
from retbench.errors import DataError
from retbench.retrievers.bm25 import BM25Index
from retbench.training.contrastive_batches import ContrastiveBatch


@dataclass(frozen=True)
class CropBatchSource:
    """Batches of crops. `texts` are those that are long enough for two crops."""

    texts: Sequence[str]
    tokenizer: Any
    crops: CropSettings
    settings: ContrastiveSettings
    seed: int
    index: BM25Index | None

    @staticmethod
    def build(
        texts: Iterable[str], tokenizer: Any, crops: CropSettings, settings: ContrastiveSettings, seed: int
    ) -> "CropBatchSource":
        """Keep the texts of at least twice `min_tokens`, and index them for hard negatives."""
        minimum = 2 * crops.min_tokens
        long_texts = list(dict.fromkeys(text for text in texts if len(_tokenize(tokenizer, text)) >= minimum))
        if len(long_texts) < 2:
            raise DataError(f"fewer than two texts have {minimum} tokens, which crops need", "use a larger corpus")
        index = BM25Index(LexicalSettings(), long_texts) if settings.hard_negatives else None
        return CropBatchSource(long_texts, tokenizer, crops, settings, seed, index)

    def __len__(self) -> int:
        return len(self.texts)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """Two crops of every text, and the crops of its hard negatives."""
        generators = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        queries = [self._draw_crop(int(row), generator) for row, generator in zip(rows, generators, strict=True)]
        positives = [self._draw_crop(int(row), generator) for row, generator in zip(rows, generators, strict=True)]
        picks = [(owner, row) for owner, hits in enumerate(self._find_negatives(queries, rows)) for row in hits]
        negatives = [self._draw_crop(row, generators[owner]) for owner, row in picks]
        sources = np.array([*map(int, rows), *(row for _, row in picks)])
        owners = np.array([*range(len(rows)), *(owner for owner, _ in picks)])
        return ContrastiveBatch(queries, positives + negatives, owners, sources[None, :] == rows[:, None])

    def _find_negatives(self, crops: list[str], rows: np.ndarray) -> list[list[int]]:
        """The texts that BM25 ranks highest for a crop, without the crop's own text."""
        if self.index is None:
            return [[] for _ in crops]
        ranked_rows = self.index.search(crops, self.settings.hard_negatives + 1).rows
        others = [[int(hit) for hit in hits if hit != row] for hits, row in zip(ranked_rows, rows, strict=True)]
        return [hits[: self.settings.hard_negatives] for hits in others]

    def _draw_crop(self, row: int, generator: np.random.Generator) -> str:
        ids = _tokenize(self.tokenizer, self.texts[row])
        ratio = generator.uniform(self.crops.min_ratio, self.crops.max_ratio)
        length = min(len(ids), max(self.crops.min_tokens, round(ratio * len(ids))))
        start = int(generator.integers(len(ids) - length + 1))
        return str(self.tokenizer.decode(ids[start : start + length])).strip()


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
