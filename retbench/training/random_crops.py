"""Pairs without labels, for llm2ir: two crops of one text, and a crop of what BM25 finds as a negative."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.cards.model import Lexical
from retbench.cards.recipe import Contrast, Crops
from retbench.errors import DataError
from retbench.retrievers.bm25 import BM25
from retbench.training.contrastive_batches import Group


@dataclass(frozen=True)
class Cropped:
    """Groups of crops. Texts too short for a crop that says something are left out; `texts` holds the rest."""

    texts: Sequence[str]
    tokenizer: Any
    crops: Crops
    contrast: Contrast
    seed: int
    index: BM25 | None

    @staticmethod
    def of(texts: Iterable[str], tokenizer: Any, crops: Crops, contrast: Contrast, seed: int) -> "Cropped":
        """Texts of at least two of the shortest crops."""
        kept = list(dict.fromkeys(text for text in texts if len(_ids(tokenizer, text)) >= 2 * crops.least))
        if len(kept) < 2:
            raise DataError("fewer than two texts are long enough to be cropped", "use a larger corpus")
        index = BM25(Lexical(), kept) if contrast.negatives else None
        return Cropped(kept, tokenizer, crops, contrast, seed, index)

    def __len__(self) -> int:
        return len(self.texts)

    def group(self, rows: np.ndarray, epoch: int) -> Group:
        """Two crops of every text, and the crops of its negatives."""
        draws = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        queries = [self._crop(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        positives = [self._crop(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        picks = [(owner, row) for owner, hits in enumerate(self._hits(queries, rows)) for row in hits]
        negatives = [self._crop(row, draws[owner]) for owner, row in picks]
        sources = np.array([*map(int, rows), *(row for _, row in picks)])
        owner = np.array([*range(len(rows)), *(owner for owner, _ in picks)])
        return Group(queries, positives + negatives, owner, sources[None, :] == rows[:, None])

    def _hits(self, crops: list[str], rows: np.ndarray) -> list[list[int]]:
        """The best hits of a crop in other texts."""
        if self.index is None:
            return [[] for _ in crops]
        found = self.index.search(crops, self.contrast.negatives + 1).rows
        others = [[int(hit) for hit in hits if hit != row] for hits, row in zip(found, rows, strict=True)]
        return [hits[: self.contrast.negatives] for hits in others]

    def _crop(self, row: int, draw: np.random.Generator) -> str:
        ids = _ids(self.tokenizer, self.texts[row])
        share = draw.uniform(self.crops.shortest, self.crops.longest)
        length = min(len(ids), max(self.crops.least, round(share * len(ids))))
        start = int(draw.integers(len(ids) - length + 1))
        return str(self.tokenizer.decode(ids[start : start + length])).strip()


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
