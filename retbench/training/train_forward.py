"""Texts to vectors with gradients: the ids and the pooling of evaluation, through the same model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retbench.cards.recipe import Recipe
from retbench.encoders.listwise_prompt import Sheet
from retbench.encoders.pooling import POOLINGS, narrowed
from retbench.encoders.prompt_tokenizer import Tokens, Wording
from retbench.engines.padding import pad
from retbench.errors import DataError
from retbench.training import packed_forward


@dataclass(frozen=True)
class Trainee:
    """A model in training, with all that turns a text into its vector."""

    model: nn.Module
    wording: Wording
    recipe: Recipe
    causal: bool
    device: torch.device

    @property
    def sheet(self) -> Sheet:
        """How a prompt that lists documents is read."""
        return Sheet(self.wording, bool(self.wording.tokenizer.chat_template))

    def tokens(self, queries: Sequence[str], passages: Sequence[str], lists: Sequence[str] = ()) -> Tokens:
        """Token ids of queries, passages and lists, by the functions that evaluation uses."""
        found = self._tokens(queries, passages)
        for one in map(self.sheet.tokens, lists):
            starts = None if found.starts is None else np.append(found.starts, 0 if one.starts is None else one.starts)
            ends = np.append(found.offsets, found.offsets[-1] + len(one.flat))
            found = Tokens(np.append(found.flat, one.flat), ends, 0, 0, starts)
        return found

    def _tokens(self, queries: Sequence[str], passages: Sequence[str]) -> Tokens:
        lengths = self.recipe.lengths
        first = self.wording.tokens(queries, "query", lengths.query)
        second = self.wording.tokens(passages, "document", lengths.document)
        starts = None if first.starts is None or second.starts is None else np.append(first.starts, second.starts)
        offsets = np.append(first.offsets, second.offsets[1:] + first.offsets[-1])
        return Tokens(np.append(first.flat, second.flat), offsets, 0, 0, starts)

    def vectors(self, batch: Tokens, seed: int) -> Tensor:
        """Pooled states of one pass, with gradients; the seed fixes what dropout drops."""
        torch.manual_seed(seed)
        flat, offsets = self.states([batch[row] for row in range(len(batch))])
        if batch.starts is not None:
            flat, offsets = narrowed(flat, offsets, torch.from_numpy(batch.starts).to(flat.device))
        return POOLINGS[self.recipe.method.pooling](flat, offsets)

    def states(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The last layer's states of one pass without padding, and their offsets."""
        if self.causal and not self.recipe.recompute and packed_forward.fits(self.model):
            return packed_forward.states(self.model, rows), torch.tensor([0, *map(len, rows)]).cumsum(0)
        padded = pad(rows)
        real = padded.real.to(self.device)
        inputs: dict[str, Any] = {"input_ids": padded.ids.to(self.device)}
        if self.causal:
            inputs["use_cache"] = False  # right padding needs no mask: no real token sees what is behind it
        else:
            inputs["attention_mask"] = real.long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            states = self.model(**inputs).last_hidden_state
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), padded.lengths.cumsum(0))).to(self.device)
        return states[real], offsets


def passes(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Which rows are run together: sorted by length, padded size within the budget; a long one runs alone."""
    if len(lengths) == 0:
        raise DataError("a batch holds no text", "check the training set")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
