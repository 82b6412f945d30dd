"""Pairs without labels, for llm2ir: two crops of one text, and a crop of what BM25 finds as a negative."""

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
    """Groups of crops. Texts too short for a crop that says something are left out; `texts` holds the rest."""

    texts: Sequence[str]
    tokenizer: Any
    crops: CropSettings
    settings: ContrastiveSettings
    seed: int
    index: BM25Index | None

    @staticmethod
    def build(
        texts: Iterable[str], tokenizer: Any, crops: CropSettings, contrast: ContrastiveSettings, seed: int
    ) -> "CropBatchSource":
        """Texts of at least two of the shortest crops."""
        kept = list(dict.fromkeys(text for text in texts if len(_tokenize(tokenizer, text)) >= 2 * crops.min_tokens))
        if len(kept) < 2:
            raise DataError("fewer than two texts are long enough to be cropped", "use a larger corpus")
        index = BM25Index(LexicalSettings(), kept) if contrast.hard_negatives else None
        return CropBatchSource(kept, tokenizer, crops, contrast, seed, index)

    def __len__(self) -> int:
        return len(self.texts)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """Two crops of every text, and the crops of its negatives."""
        draws = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        queries = [self._draw_crop(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        positives = [self._draw_crop(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        picks = [(owner, row) for owner, hits in enumerate(self._find_negatives(queries, rows)) for row in hits]
        negatives = [self._draw_crop(row, draws[owner]) for owner, row in picks]
        sources = np.array([*map(int, rows), *(row for _, row in picks)])
        owner = np.array([*range(len(rows)), *(owner for owner, _ in picks)])
        return ContrastiveBatch(queries, positives + negatives, owner, sources[None, :] == rows[:, None])

    def _find_negatives(self, crops: list[str], rows: np.ndarray) -> list[list[int]]:
        """The best hits of a crop in other texts."""
        if self.index is None:
            return [[] for _ in crops]
        found = self.index.search(crops, self.settings.hard_negatives + 1).rows
        others = [[int(hit) for hit in hits if hit != row] for hits, row in zip(found, rows, strict=True)]
        return [hits[: self.settings.hard_negatives] for hits in others]

    def _draw_crop(self, row: int, draw: np.random.Generator) -> str:
        ids = _tokenize(self.tokenizer, self.texts[row])
        share = draw.uniform(self.crops.min_ratio, self.crops.max_ratio)
        length = min(len(ids), max(self.crops.min_tokens, round(share * len(ids))))
        start = int(draw.integers(len(ids) - length + 1))
        return str(self.tokenizer.decode(ids[start : start + length])).strip()


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
