"""The sparse encoder of PromptReps: the logits of the last state, at the words of the text, become term weights.

A weight is log(1 + relu(logit)) x 100, rounded. The 128 largest weights are kept; for a text without words, the 10
largest of the whole vocabulary. One forward pass gives the dense vector and the terms, so they are stored as one row:
the vector, 128 term ids, and their weights (0 means no term). `split_rows` splits such rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.engines.lm_head import LMHead
from retbench.store.shard_store import VectorBlock

TERMS_PER_TEXT = 128
TERMS_WITHOUT_WORDS = 10
WEIGHT_SCALE = 100


class SplitRows(NamedTuple):
    """The parts of stored rows: normalized vectors, term ids, term weights."""

    dense: np.ndarray
    terms: np.ndarray
    weights: np.ndarray

    def list_terms(self, rows: np.ndarray) -> VectorBlock:
        """The terms as an inverted index takes them; weight 0 means no term."""
        offsets = np.arange(len(rows) + 1) * TERMS_PER_TEXT
        return VectorBlock(rows, self.weights.ravel(), offsets, self.terms.ravel())


def split_rows(rows: np.ndarray) -> SplitRows:
    """Split the rows of `SparseEncoder`. Term ids are exact in float32 up to 16 million."""
    dense, terms, weights = np.split(rows, [-2 * TERMS_PER_TEXT, -TERMS_PER_TEXT], axis=1)
    return SplitRows(dense, terms.astype(np.int64), weights)


@dataclass(frozen=True)
class SparseEncoder(BackboneEncoder):
    """A backbone with its language-model head. Encodes dense vector and terms in one row."""

    lm_head: LMHead

    @property
    def dimension(self) -> int:
        """Width of a stored row."""
        return self.backbone.dimension + 2 * TERMS_PER_TEXT

    def start_encoding(self, batch: TokenizedTexts) -> Callable[[], np.ndarray]:
        """One batch as rows of dense vector, term ids and term weights; selecting the terms waits for the states."""
        states = self._pool(batch, *self.backbone.compute_states(list(batch)))
        weights = self.lm_head.compute_logits(states).relu().log1p()
        terms = [self._select_terms(row, words) for row, words in zip(weights, batch.word_ids or [], strict=True)]
        dense = torch.nn.functional.normalize(states, dim=1).cpu().numpy()
        rows = np.concatenate([dense, np.stack(terms)], axis=1)
        return lambda: rows

    def _select_terms(self, weights: torch.Tensor, words: np.ndarray) -> np.ndarray:
        candidates = torch.from_numpy(words).to(weights.device) if len(words) else torch.arange(len(weights))
        top = weights[candidates].topk(min(len(words), TERMS_PER_TEXT) or TERMS_WITHOUT_WORDS)
        row = np.zeros(2 * TERMS_PER_TEXT, dtype=np.float32)
        row[: len(top.indices)] = candidates[top.indices.to(candidates.device)].cpu().numpy()
        row[TERMS_PER_TEXT : TERMS_PER_TEXT + len(top.values)] = (top.values * WEIGHT_SCALE).round().cpu().numpy()
        return row
