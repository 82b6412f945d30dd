"""Texts to vectors with gradients: the tokens and the pooling of evaluation, by a model in training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retbench.cards.recipe import Recipe
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer
from retbench.encoders.pooling import POOLINGS, drop_leading_tokens
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts, concatenate_texts
from retbench.engines import varlen
from retbench.engines.device import copy_to_device
from retbench.engines.padding import pad_rows
from retbench.errors import DataError
from retbench.training import packed_forward
from retbench.training.row_dropout import use_row_seeds


@dataclass(frozen=True)
class TrainableEncoder:
    """A model in training, with the tokenizer and the recipe that turn a text into its vector."""

    model: nn.Module
    prompt_tokenizer: PromptTokenizer
    recipe: Recipe
    causal: bool
    device: torch.device

    @property
    def listwise_prompt(self) -> ListwisePromptTokenizer:
        """The tokenizer of prompts that list documents."""
        return ListwisePromptTokenizer(self.prompt_tokenizer, bool(self.prompt_tokenizer.tokenizer.chat_template))

    def tokenize(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        list_prompts: Sequence[str] = (),
        instructions: Sequence[str | None] = (),
    ) -> TokenizedTexts:
        """Token ids of queries, passages and list prompts, in that order, as in evaluation.

        `instructions` has one entry for each query, or none at all; None means the method's.
        """
        parts = [*self._tokenize_queries(queries, instructions)]
        parts.append(self.prompt_tokenizer.tokenize(passages, "document", self.recipe.lengths.document))
        return concatenate_texts([*parts, *map(self.listwise_prompt.tokenize, list_prompts)])

    def _tokenize_queries(self, queries: Sequence[str], instructions: Sequence[str | None]) -> Iterator[TokenizedTexts]:
        limit = self.recipe.lengths.query
        if not instructions:
            yield self.prompt_tokenizer.tokenize(queries, "query", limit)
            return
        for query, instruction in zip(queries, instructions, strict=True):
            own = self.prompt_tokenizer.instruction if instruction is None else instruction
            yield replace(self.prompt_tokenizer, instruction=own).tokenize([query], "query", limit)

    def encode(self, tokens: TokenizedTexts, seeds: np.ndarray | None = None) -> Tensor:
        """Pooled states of one pass, with gradients; each text's seed fixes its dropout."""
        row_seeds = None if seeds is None else torch.from_numpy(seeds).to(self.device)
        if seeds is not None:
            torch.manual_seed(int(seeds[0]))  # for dropout inside of attention kernels
        with use_row_seeds(row_seeds):
            flat, offsets = self.compute_states([tokens[row] for row in range(len(tokens))])
        if tokens.pooling_starts is not None:
            flat, offsets = drop_leading_tokens(flat, offsets, torch.from_numpy(tokens.pooling_starts).to(flat.device))
        return POOLINGS[self.recipe.method.pooling](flat, offsets)

    def compute_states(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The last layer's states of one pass without padding, and their offsets."""
        offsets = copy_to_device(torch.tensor([0, *map(len, rows)]).cumsum(0), self.device)
        if not self.recipe.gradient_checkpointing:
            if self.causal and packed_forward.supports_model(self.model):
                return packed_forward.compute_states(self.model, rows), offsets
            if packed_forward.supports_varlen(self.model, rows):
                return self._compute_packed_states(rows), offsets
        padded = pad_rows(rows)
        token_mask = padded.token_mask.to(self.device)
        inputs: dict[str, Any] = {"input_ids": padded.ids.to(self.device)}
        if self.causal:
            inputs["use_cache"] = False  # right padding needs no mask: causal attention never sees what comes later
        else:
            inputs["attention_mask"] = token_mask.long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            states = self.model(**inputs).last_hidden_state
        return states[token_mask], offsets

    def _compute_packed_states(self, rows: Sequence[np.ndarray]) -> Tensor:
        """The states from transformers without padding, by the GPU's kernel for texts of different lengths."""
        options = {"use_cache": False} if self.causal else {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            output = varlen.run_packed(packed_forward.get_backbone(self.model), rows, self.causal, **options)
        states: Tensor = output.last_hidden_state[0]
        return states


def split_into_passes(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Rows that are run together: sorted by length, padded size within `max_tokens`; a longer row runs alone."""
    if len(lengths) == 0:
        raise DataError("a batch has no texts", "check the training set")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
