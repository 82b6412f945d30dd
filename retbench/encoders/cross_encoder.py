"""A cross-encoder: query and document in one input, a relevance score out.

The score is the logit of a sequence classifier with one label. sentence-transformers shows its sigmoid where the model
has no other activation: the same order, but equal scores where float32 cannot tell large logits apart.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retbench.cards.model import Dtype
from retbench.encoders.batch_plan import BatchPlan
from retbench.engines import model_loader, remote_code
from retbench.engines.memory import compute_in_halves
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, InapplicableError


@dataclass(frozen=True)
class TokenizedPairs:
    """Pairs of a query and a document as the model reads them: for each pair its inputs by name, and what was cut."""

    inputs: list[dict[str, list[int]]]
    is_cut: list[bool]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each pair."""
        return np.array([len(pair["input_ids"]) for pair in self.inputs])


@dataclass(frozen=True)
class PairTokenizer:
    """Joins query and document by the tokenizer's own template; of a pair that is too long the longer text is cut."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None

    def tokenize_pairs(self, query: str, documents: Sequence[str]) -> TokenizedPairs:
        """The inputs of one query with each document."""
        encoded = self.tokenizer(
            [query] * len(documents), list(documents), max_length=self.max_length,
            truncation="longest_first" if self.max_length else False,
        )  # fmt: skip
        inputs = [{name: encoded[name][row] for name in encoded} for row in range(len(documents))]
        return TokenizedPairs(inputs, [bool(encoding.overflowing) for encoding in encoded.encodings or ()])

    def show_pair(self, query: str, document: str) -> dict[str, Any]:
        """One pair as text and token ids, as the model reads it."""
        (pair,) = self.tokenize_pairs(query, [document]).inputs
        return {"prompt": self.tokenizer.decode(pair["input_ids"]), "ids": pair["input_ids"]}


@dataclass(frozen=True)
class CrossEncoder:
    """A loaded cross-encoder."""

    model: PreTrainedModel
    pair_tokenizer: PairTokenizer
    device: torch.device

    def score_pairs(self, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        """The score of every pair, in batches of at most `max_tokens` padded tokens."""
        scores = np.empty(len(pairs.inputs))
        plan = BatchPlan.build(pairs.lengths, max_tokens, shard_rows=len(pairs.inputs))
        for batch in plan.iterate_batches(0):
            for part, logits in compute_in_halves(batch, lambda rows: self._compute_logits(pairs, rows)):
                scores[part] = logits
        return scores

    @torch.inference_mode()
    def _compute_logits(self, pairs: TokenizedPairs, rows: np.ndarray) -> np.ndarray:
        padded = self.pair_tokenizer.tokenizer.pad([pairs.inputs[row] for row in rows], return_tensors="pt")
        inputs = {name: padded[name].to(self.device) for name in padded if name in self._parameters}
        output: Any = self.model(**inputs)
        return np.asarray(output.logits[:, 0].float().cpu().numpy())

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)


def load_pair_tokenizer(folder: Path, max_length: int | None) -> PairTokenizer:
    """The tokenizer of a folder. With a chat template, pairs would be read as a chat, which is not supported."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template:
        raise InapplicableError(
            f"{folder} has a chat template: how it joins query and document is not known",
            "use pointwise:model=NAME with a language model, or another cross-encoder",
        )
    if not tokenizer.is_fast:
        raise InapplicableError(f"the tokenizer of {folder} has no tokenizer.json", "use another cross-encoder")
    return PairTokenizer(tokenizer, max_length)


def load_cross_encoder(folder: Path, pair_tokenizer: PairTokenizer, dtype: Dtype, device: torch.device) -> CrossEncoder:
    """Load the weights. A model or tokenizer without padding token would read padding as text."""
    model: Any = model_loader.load_sequence_classifier(folder, dtype, remote_code.is_remote_code_trusted())
    if pair_tokenizer.tokenizer.pad_token_id is None or model.config.get_text_config().pad_token_id is None:
        raise DataError(
            f"{folder} has no padding token", "set pad_token_id in its config.json and tokenizer_config.json"
        )
    return CrossEncoder(model.to(device).eval(), pair_tokenizer, device)
