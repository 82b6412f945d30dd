"""Stage 1 of llm-ql: a model is trained to predict the query from one token that stands for the document.

A row is the document's prompt, the bottleneck (the tokenizer's end-of-sequence token), the query, and an
end-of-sequence token. With Attention Stop no position after the bottleneck attends to one before it, so the query
depends on the document through that one position only. With Input Corruption most words of the document are replaced,
so that it cannot be copied. The loss is that of a language model over the whole row.
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
from retbench.engines.memory import compute_in_halves
from retbench.engines.padding import pad_rows
from retbench.errors import UsageError
from retbench.training import distributed, fsdp
from retbench.training.attention_stop import Masks, build_model_masks, check_mask_is_obeyed
from retbench.training.contrastive_batches import BatchSampler
from retbench.training.row_dropout import derive_row_seeds, use_row_seeds
from retbench.training.train_forward import split_into_passes
from retbench.training.training_set import TrainingSet

LOGIT_BYTES = 4 << 30  # of one training pass; a vocabulary of 150,000 tokens leaves room for 2,000 tokens
BYTES_PER_LOGIT = 14  # in bfloat16 and float32, their gradients, and the log-probability


@dataclass(frozen=True)
class QueryLikelihoodRow:
    """The token ids of one row, and the position of its bottleneck."""

    ids: np.ndarray
    bottleneck: int


@dataclass(frozen=True)
class QueryLikelihoodModel:
    """A language model with its head, and the settings of stage 1."""

    model: nn.Module
    tokenizer: Any
    settings: QueryLikelihoodTraining
    dtype: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UsageError(
                "the tokenizer has no end-of-sequence token, which is needed as bottleneck", "use another model"
            )
        check_mask_is_obeyed(self.model, self._run_model, self._build_masks)

    @property
    def max_tokens_with_logits(self) -> int:
        """The tokens of a training pass whose logits fit into LOGIT_BYTES."""
        config: Any = self.model.config
        vocabulary: int = config.get_text_config().vocab_size
        return max(1, LOGIT_BYTES // (BYTES_PER_LOGIT * vocabulary))

    def tokenize_pairs(self, documents: Sequence[str], queries: Sequence[str]) -> list[QueryLikelihoodRow]:
        """Pairs as rows. The bottleneck is not counted: it follows the longest prompt too."""
        settings, lengths = self.settings, self.settings.lengths
        description = ("llm-ql stage 1", "reconstructed", "arXiv 2504.05216", "last")
        document_method = Method("llm-ql-1", *description, document=settings.document, eos=True, cut=settings.cut)  # type: ignore[arg-type]  # two of the words are literals
        query_method = Method("llm-ql-1", *description, eos=True, special_tokens=False)  # type: ignore[arg-type]  # the same
        limit = lengths.document + (settings.cut == "tokens")  # the tokenizer counts the end-of-sequence token
        heads = PromptTokenizer(self.tokenizer, document_method).tokenize(documents, "document", limit)
        tails = PromptTokenizer(self.tokenizer, query_method).tokenize(queries, "query", lengths.query)
        return [QueryLikelihoodRow(np.append(heads[n], tails[n]), len(heads[n]) - 1) for n in range(len(heads))]

    def compute_logits(self, rows: Sequence[QueryLikelihoodRow], first: int = 0) -> tuple[Tensor, Tensor]:
        """The logits of padded rows from a position on, and the rows' ids from there."""
        padded, lengths = pad_rows([row.ids for row in rows])
        logits = self._run_model(padded, self._build_masks(lengths, [row.bottleneck for row in rows]), first)
        return logits.float(), padded[:, first:].to(self.device)

    def _build_masks(self, lengths: Tensor, bottlenecks: Sequence[int]) -> Masks:
        config: Any = self.model.config
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else next(self.model.parameters()).dtype
        return build_model_masks(config, lengths, bottlenecks, self.settings.attention_stop, dtype, self.device)

    def _run_model(self, ids: Tensor, masks: Masks, first: int = 0) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output = self.model(
                input_ids=ids.to(self.device), attention_mask=masks, use_cache=False,
                logits_to_keep=ids.shape[1] - first,
            )  # fmt: skip
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def compute_log_likelihoods(self, documents: Sequence[str], queries: Sequence[str], max_tokens: int) -> np.ndarray:
        """log P(query | document) of every pair: the sum over the query's tokens and the final end of sequence."""
        rows = self.tokenize_pairs(documents, queries)
        log_likelihoods = np.empty(len(rows))
        for pass_rows in split_into_passes(np.array([len(row.ids) for row in rows]), max_tokens):
            parts = compute_in_halves(pass_rows, lambda part: self._score_queries([rows[index] for index in part]))
            for part, scores in parts:
                log_likelihoods[part] = scores
        return log_likelihoods

    def _score_queries(self, rows: list[QueryLikelihoodRow]) -> list[float]:
        first = min(row.bottleneck for row in rows)  # the logits of documents would need most of the memory
        token_scores = -_compute_token_losses(*self.compute_logits(rows, first))
        ranges = [slice(row.bottleneck - first, len(row.ids) - 1 - first) for row in rows]
        return [float(token_scores[position, tokens].sum()) for position, tokens in enumerate(ranges)]


def corrupt_text(text: str, ratio: float, mask_word: str, seed: tuple[int, ...]) -> str:
    """The text with about `ratio` of its words replaced; each word is drawn independently, spaces become single."""
    if ratio == 0:
        return text
    words = text.split()
    masked = np.random.default_rng(seed).random(len(words)) < ratio
    return " ".join(mask_word if is_masked else word for word, is_masked in zip(words, masked, strict=True))


def _compute_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """The loss of predicting each position's next token, [row, position]."""
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


@dataclass(frozen=True)
class QueryLikelihoodObjective:
    """The gradient of stage 1. The train loop calls `backward` once a step."""

    language_model: QueryLikelihoodModel
    training_set: TrainingSet
    seed: int

    @property
    def sampler(self) -> BatchSampler:
        """Which pairs each step takes."""
        return BatchSampler(len(self.training_set.queries), self.language_model.settings.batch, self.seed)

    def sample_pairs(self, step: int) -> tuple[list[str], list[str]]:
        """The corrupted documents of a step, and their queries."""
        epoch, batches = self.sampler.sample_rows(step)
        documents, queries, settings = [], [], self.language_model.settings
        for row in np.concatenate(batches).tolist():
            query, seed = self.training_set.queries[row], (self.seed, epoch, row)
            positive = query.positives[int(np.random.default_rng(seed).integers(len(query.positives)))]
            document = self.training_set.passages[positive]
            documents.append(corrupt_text(document, settings.corruption_ratio, settings.mask_word, seed))
            queries.append(query.text)
        return documents, queries

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradient of one step; every token has the same weight, whichever process runs it."""
        rows = self.language_model.tokenize_pairs(*self.sample_pairs(step))
        predicted_tokens = sum(len(row.ids) - 1 for row in rows)
        own = range(distributed.get_rank(), len(rows), distributed.get_world_size())
        own_rows, seeds = [rows[index] for index in own], derive_row_seeds((self.seed, step), own)
        lengths = np.array([len(row.ids) for row in own_rows])
        total_loss, max_tokens = 0.0, self.language_model.settings.batch.max_tokens
        passes = list(split_into_passes(lengths, min(max_tokens, self.language_model.max_tokens_with_logits)))
        sharded = fsdp.is_sharded(self.language_model.model)  # then all processes must run the same number of passes
        empty_passes = fsdp.count_max_passes(len(passes)) - len(passes) if sharded else 0
        for pass_rows in passes:
            with use_row_seeds(torch.from_numpy(seeds[pass_rows]).to(self.language_model.device)):
                loss = self._compute_loss([own_rows[int(index)] for index in pass_rows]) / predicted_tokens
            if sharded or torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total_loss += float(loss.detach())
        for _ in range(empty_passes):
            zero = self._compute_loss(own_rows[-1:]) * 0
            zero.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return distributed.sum_over_processes(total_loss), sum(len(row.ids) for row in own_rows)

    def _compute_loss(self, rows: list[QueryLikelihoodRow]) -> Tensor:
        """The summed loss of all real tokens of one pass."""
        logits, ids = self.language_model.compute_logits(rows)
        lengths = torch.tensor([len(row.ids) for row in rows], device=ids.device)
        is_token = torch.arange(1, ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
        return _compute_token_losses(logits, ids)[is_token].sum()

    def get_first_query(self, step: int) -> str:
        """The beginning of a step's first query, for error messages."""
        return self.sample_pairs(step)[1][0][:80]
