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
from retbench.engines.device import copy_to_device, start_copy_to_host
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
        """One batch as rows of dense vector, term ids and weights. A GPU copies the weights of all words at once."""
        states = self._pool(batch, *self.backbone.compute_states(list(batch)))
        weights, words = self.lm_head.compute_logits(states).relu().log1p(), batch.word_ids or []
        counts = np.array([len(row) for row in words], dtype=np.int64)
        rows, terms = np.repeat(np.arange(len(words)), counts), np.concatenate([*words, np.empty(0, dtype=np.int64)])
        places = (copy_to_device(torch.from_numpy(part.astype(np.int64)), weights.device) for part in (rows, terms))
        get_word_weights = start_copy_to_host(weights[tuple(places)])
        without_words = np.flatnonzero(counts == 0)
        top = weights[copy_to_device(torch.from_numpy(without_words), weights.device)].topk(TERMS_WITHOUT_WORDS)
        copies = [start_copy_to_host(part) for part in (top.indices, top.values)]
        get_dense = start_copy_to_host(torch.nn.functional.normalize(states, dim=1))

        def finish() -> np.ndarray:
            word_weights = np.split(get_word_weights(), np.cumsum(counts)[:-1])
            chosen = [_select_terms(row, values) for row, values in zip(words, word_weights, strict=True)]
            for row, indices, values in zip(without_words, *(get_part() for get_part in copies), strict=True):
                chosen[row] = _format_terms(indices, values)
            return np.concatenate([get_dense(), np.stack(chosen)], axis=1)

        return finish


def _select_terms(words: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The words of a text with the largest weights, as a part of a stored row."""
    top = torch.from_numpy(weights).topk(min(len(words), TERMS_PER_TEXT))
    return _format_terms(words[top.indices.numpy()], top.values.numpy())


def _format_terms(terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    row = np.zeros(2 * TERMS_PER_TEXT, dtype=np.float32)
    row[: len(terms)] = terms
    row[TERMS_PER_TEXT : TERMS_PER_TEXT + len(weights)] = np.rint(weights * WEIGHT_SCALE)
    return row
