"""Texts to vectors with gradients: the ids and the pooling of evaluation, through the same model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retbench.cards.recipe import Recipe
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer
from retbench.encoders.pooling import POOLINGS, narrowed
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.padding import pad_rows
from retbench.errors import DataError
from retbench.training import packed_forward


@dataclass(frozen=True)
class TrainableEncoder:
    """A model in training, with all that turns a text into its vector."""

    model: nn.Module
    prompt_tokenizer: PromptTokenizer
    recipe: Recipe
    causal: bool
    device: torch.device

    @property
    def listwise_prompt(self) -> ListwisePromptTokenizer:
        """How a prompt that lists documents is read."""
        return ListwisePromptTokenizer(self.prompt_tokenizer, bool(self.prompt_tokenizer.tokenizer.chat_template))

    def tokenize(self, queries: Sequence[str], passages: Sequence[str], lists: Sequence[str] = ()) -> TokenizedTexts:
        """Token ids of queries, passages and lists, by the functions that evaluation uses."""
        found = self._tokenize_pairs(queries, passages)
        for one in map(self.listwise_prompt.tokenize, lists):
            starts = (
                None
                if found.pooling_starts is None
                else np.append(found.pooling_starts, 0 if one.pooling_starts is None else one.pooling_starts)
            )
            ends = np.append(found.offsets, found.offsets[-1] + len(one.flat))
            found = TokenizedTexts(np.append(found.flat, one.flat), ends, 0, 0, starts)
        return found

    def _tokenize_pairs(self, queries: Sequence[str], passages: Sequence[str]) -> TokenizedTexts:
        lengths = self.recipe.lengths
        first = self.prompt_tokenizer.tokenize(queries, "query", lengths.query)
        second = self.prompt_tokenizer.tokenize(passages, "document", lengths.document)
        starts = (
            None
            if first.pooling_starts is None or second.pooling_starts is None
            else np.append(first.pooling_starts, second.pooling_starts)
        )
        offsets = np.append(first.offsets, second.offsets[1:] + first.offsets[-1])
        return TokenizedTexts(np.append(first.flat, second.flat), offsets, 0, 0, starts)

    def encode(self, batch: TokenizedTexts, seed: int) -> Tensor:
        """Pooled states of one pass, with gradients; the seed fixes what dropout drops."""
        torch.manual_seed(seed)
        flat, offsets = self.compute_states([batch[row] for row in range(len(batch))])
        if batch.pooling_starts is not None:
            flat, offsets = narrowed(flat, offsets, torch.from_numpy(batch.pooling_starts).to(flat.device))
        return POOLINGS[self.recipe.method.pooling](flat, offsets)

    def compute_states(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The last layer's states of one pass without padding, and their offsets."""
        if self.causal and not self.recipe.gradient_checkpointing and packed_forward.supports_model(self.model):
            return packed_forward.compute_states(self.model, rows), torch.tensor([0, *map(len, rows)]).cumsum(0)
        padded = pad_rows(rows)
        real = padded.token_mask.to(self.device)
        inputs: dict[str, Any] = {"input_ids": padded.ids.to(self.device)}
        if self.causal:
            inputs["use_cache"] = False  # right padding needs no mask: no real token sees what is behind it
        else:
            inputs["attention_mask"] = real.long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            states = self.model(**inputs).last_hidden_state
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), padded.lengths.cumsum(0))).to(self.device)
        return states[real], offsets


def split_into_passes(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Which rows are run together: sorted by length, padded size within the budget; a long one runs alone."""
    if len(lengths) == 0:
        raise DataError("a batch holds no text", "check the training set")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
