"""A cross-encoder: query and document in one input, a relevance score out.

The score of a sequence classifier with one label is its logit; that of a language model is the logit of the answer yes
minus that of the answer no (Qwen3-Reranker). The probability that the libraries show is the sigmoid of both: the same
order, but equal scores where float32 cannot tell large logits apart.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from retbench.cards.model import Dtype
from retbench.encoders.batch_plan import BatchPlan
from retbench.encoders.pair_tokenizers import PairTokenizer, TokenizedPairs
from retbench.engines import lm_head, model_loader, remote_code
from retbench.engines.backbone import Backbone, load_backbone
from retbench.engines.memory import compute_in_halves
from retbench.errors import DataError


class CrossEncoder(Protocol):
    """A loaded cross-encoder of any kind."""

    @property
    def pair_tokenizer(self) -> PairTokenizer:
        """How it reads a pair."""
        ...

    def score_pairs(self, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        """The score of every pair, in batches of at most `max_tokens` padded tokens."""
        ...


def score_in_batches(
    pairs: TokenizedPairs, max_tokens: int, compute_logits: Callable[[TokenizedPairs, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The score of every pair: batches of similar length, in halves where memory runs out."""
    scores = np.empty(len(pairs.inputs))
    plan = BatchPlan.build(pairs.lengths, max_tokens, shard_rows=len(pairs.inputs))
    for batch in plan.iterate_batches(0):
        for part, logits in compute_in_halves(batch, lambda rows: compute_logits(pairs, rows)):
            scores[part] = logits
    return scores


@dataclass(frozen=True)
class ClassifierCrossEncoder:
    """A sequence classifier with one label."""

    model: PreTrainedModel
    pair_tokenizer: PairTokenizer
    device: torch.device

    def score_pairs(self, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        """The score of every pair, in batches of at most `max_tokens` padded tokens."""
        return score_in_batches(pairs, max_tokens, self._compute_logits)

    @torch.inference_mode()
    def _compute_logits(self, pairs: TokenizedPairs, rows: np.ndarray) -> np.ndarray:
        padded = self.pair_tokenizer.tokenizer.pad([pairs.inputs[row] for row in rows], return_tensors="pt")
        inputs = {name: padded[name].to(self.device) for name in padded if name in self._parameters}
        output: Any = self.model(**inputs)
        return np.asarray(output.logits[:, 0].float().cpu().numpy())

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)


class AnswerTokens(NamedTuple):
    """The tokens of the answers yes and no; without no the score is the logit of yes."""

    yes: int
    no: int | None


@dataclass(frozen=True)
class YesNoCrossEncoder:
    """A language model that answers yes or no. `answer_head` has the rows of its head for these tokens alone."""

    backbone: Backbone
    answer_head: lm_head.LMHead
    pair_tokenizer: PairTokenizer

    def score_pairs(self, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        """The score of every pair, in batches of at most `max_tokens` padded tokens."""
        return score_in_batches(pairs, max_tokens, self._compute_logits)

    def _compute_logits(self, pairs: TokenizedPairs, rows: np.ndarray) -> np.ndarray:
        ids = [np.array(pairs.inputs[row]["input_ids"], dtype=np.int64) for row in rows]
        flat, offsets = self.backbone.compute_states(ids)
        yes, *no = self.answer_head.compute_logits(flat[offsets[1:] - 1]).T
        return np.asarray((yes - no[0] if no else yes).cpu().numpy())


def load_cross_encoder(
    folder: Path, pair_tokenizer: PairTokenizer, dtype: Dtype, device: torch.device, answers: AnswerTokens | None = None
) -> CrossEncoder:
    """Load the weights: of a language model if it has `answers`, else of a sequence classifier."""
    if answers is None:
        return _load_classifier(folder, pair_tokenizer, dtype, device)
    backbone = load_backbone(folder, dtype, device)
    head = lm_head.load_lm_head(folder, backbone)
    rows = [token for token in answers if token is not None]
    bias = None if head.bias is None else head.bias[rows]
    return YesNoCrossEncoder(backbone, replace(head, weight=head.weight[rows], bias=bias), pair_tokenizer)


def _load_classifier(
    folder: Path, pair_tokenizer: PairTokenizer, dtype: Dtype, device: torch.device
) -> ClassifierCrossEncoder:
    """A model or tokenizer without padding token would read padding as text."""
    options, trust = model_loader.get_device_map_options(device), remote_code.is_remote_code_trusted()
    model: Any = model_loader.load_sequence_classifier(folder, dtype, options, trust)
    if pair_tokenizer.tokenizer.pad_token_id is None or model.config.get_text_config().pad_token_id is None:
        raise DataError(
            f"{folder} has no padding token", "set pad_token_id in its config.json and tokenizer_config.json"
        )
    return ClassifierCrossEncoder(model.to(device).eval(), pair_tokenizer, device)
