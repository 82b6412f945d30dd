"""Stage 1 of llm-ql: a model learns to say the query after one token that stands for the document.

A row is the document's prompt, the bottleneck (the tokenizer's end-of-sequence token), the query, and an
end-of-sequence token again. With Attention Stop nothing after the bottleneck sees anything before it: all a query
token knows of the document has gone through that one position. With Input Corruption most words of the document are
replaced, so that it cannot be copied. The loss is that of a plain language model over the whole row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retbench.cards.method import Method
from retbench.cards.recipe import QueryLikelihoodTraining
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.padding import pad_rows
from retbench.errors import UsageError
from retbench.training import distributed
from retbench.training.contrastive_batches import BatchSampler
from retbench.training.train_forward import split_into_passes
from retbench.training.training_set import TrainingSet


@dataclass(frozen=True)
class QueryLikelihoodRow:
    """The ids of one row, and where its bottleneck stands."""

    ids: np.ndarray
    bottleneck: int


@dataclass(frozen=True)
class QueryLikelihoodModel:
    """A whole language model and the words of stage 1."""

    model: nn.Module
    tokenizer: Any
    settings: QueryLikelihoodTraining
    dtype: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-sequence token to be the bottleneck", "use another model")

    def tokenize_pairs(self, documents: Sequence[str], queries: Sequence[str]) -> list[QueryLikelihoodRow]:
        """Pairs as rows; the document is cut before it enters the template, so that the prompt stays whole."""
        words = ("llm-ql stage 1", "reconstructed", "arXiv 2504.05216", "last")
        first = Method("llm-ql-1", *words, document=self.settings.document, eos=True, cut="text")  # type: ignore[arg-type]  # two of the words are literals
        second = Method("llm-ql-1", *words, eos=True, special_tokens=False)  # type: ignore[arg-type]  # the same
        lengths = self.settings.lengths
        heads = PromptTokenizer(self.tokenizer, first).tokenize(documents, "document", lengths.document)
        tails = PromptTokenizer(self.tokenizer, second).tokenize(queries, "query", lengths.query)
        return [QueryLikelihoodRow(np.append(heads[n], tails[n]), len(heads[n]) - 1) for n in range(len(heads))]

    def compute_logits(self, lines: Sequence[QueryLikelihoodRow], first: int = 0) -> tuple[Tensor, Tensor]:
        """The logits of padded rows from a position on, and the rows' ids from there."""
        padded, lengths = pad_rows([line.ids for line in lines])
        mask = build_attention_mask(lengths, [line.bottleneck for line in lines], self.settings.attention_stop)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output = self.model(
                input_ids=padded.to(self.device), attention_mask=mask.to(self.device), use_cache=False,
                logits_to_keep=padded.shape[1] - first,
            ).logits  # fmt: skip
        return output.float(), padded[:, first:].to(self.device)

    @torch.no_grad()
    def compute_log_likelihoods(self, documents: Sequence[str], queries: Sequence[str], budget: int) -> np.ndarray:
        """log P(query | document) of every pair: the sum over the query's tokens and the final end of sequence."""
        lines = self.tokenize_pairs(documents, queries)
        found = np.empty(len(lines))
        for part in split_into_passes(np.array([len(line.ids) for line in lines]), budget):
            rows = [lines[int(row)] for row in part]
            first = min(line.bottleneck for line in rows)  # logits of documents would be most of the memory
            spoken = -_compute_token_losses(*self.compute_logits(rows, first))
            for place, (row, line) in enumerate(zip(part, rows, strict=True)):
                found[row] = float(spoken[place, line.bottleneck - first : len(line.ids) - 1 - first].sum())
        return found


def build_attention_mask(lengths: Tensor, bottlenecks: Sequence[int], stop: bool) -> Tensor:
    """Who sees whom, [row, 1, from, to]: what is later is never seen, nor padding (but by itself, to stay a number)."""
    size = int(lengths.max())
    later = torch.ones(size, size, dtype=torch.bool).tril()
    allowed = later.repeat(len(lengths), 1, 1)
    for row, (length, place) in enumerate(zip(lengths.tolist(), bottlenecks, strict=True)):
        if stop:
            allowed[row, place + 1 :, :place] = False
        allowed[row, :, length:] = False
    allowed |= torch.eye(size, dtype=torch.bool)
    return allowed[:, None]


def corrupt_text(text: str, share: float, blank: str, seed: tuple[int, ...]) -> str:
    """The text with a share of its words replaced, each by its own throw."""
    words = text.split()
    drop = np.random.default_rng(seed).random(len(words)) < share
    return " ".join(blank if gone else word for word, gone in zip(words, drop, strict=True))


def _compute_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """The loss of predicting each position's next token, [row, position]."""
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


@dataclass(frozen=True)
class QueryLikelihoodObjective:
    """The updates of stage 1."""

    language_model: QueryLikelihoodModel
    training_set: TrainingSet
    seed: int

    @property
    def sampler(self) -> BatchSampler:
        """Which pairs each step takes."""
        return BatchSampler(len(self.training_set.queries), self.language_model.settings.batch, self.seed)

    def sample_pairs(self, step: int) -> tuple[list[str], list[str]]:
        """Corrupted documents and their queries."""
        epoch, groups = self.sampler.sample_rows(step)
        documents, queries, settings = [], [], self.language_model.settings
        for row in np.concatenate(groups).tolist():
            query, seed = self.training_set.queries[row], (self.seed, epoch, row)
            chosen = query.positives[int(np.random.default_rng(seed).integers(len(query.positives)))]
            documents.append(
                corrupt_text(self.training_set.passages[chosen], settings.corruption_ratio, settings.mask_word, seed)
            )
            queries.append(query.text)
        return documents, queries

    def backward(self, step: int) -> tuple[float, int]:
        """Add one update's gradient, every token of it weighing the same, whoever ran it."""
        lines = self.language_model.tokenize_pairs(*self.sample_pairs(step))
        everything = sum(len(line.ids) - 1 for line in lines)
        own = lines[distributed.get_rank() :: distributed.get_world_size()]
        total = 0.0
        for part in split_into_passes(
            np.array([len(line.ids) for line in own]), self.language_model.settings.batch.max_tokens
        ):
            rows = [own[int(row)] for row in part]
            logits, ids = self.language_model.compute_logits(rows)
            lengths = torch.tensor([len(line.ids) for line in rows], device=ids.device)
            real = torch.arange(1, ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
            value = _compute_token_losses(logits, ids)[real].sum() / everything
            if torch.isfinite(value):
                value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total += float(value.detach())
        return distributed.sum_over_processes(total), sum(len(line.ids) for line in own)

    def get_first_query(self, step: int) -> str:
        """How the first query of an update begins."""
        return self.sample_pairs(step)[1][0][:80]
