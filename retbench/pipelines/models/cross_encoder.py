"""A named cross-encoder, ready to score pairs: for reranking, for filters of hard negatives, and as a teacher."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.pair_prompt import PairPrompt
from retbench.cards.published_cross_encoder import (
    is_language_model,
    read_pair_limit,
    reads_chat,
    require_cross_encoder,
)
from retbench.cards.reranker_settings import CrossEncoderSettings
from retbench.encoders.cross_encoder import AnswerTokens, CrossEncoder, load_cross_encoder
from retbench.encoders.pair_tokenizers import PairTokenizer, choose_instruction, load_pair_tokenizer
from retbench.encoders.published_pair_prompt import find_answer_tokens, read_pair_prompt
from retbench.engines import memory, model_folders, remote_code, weights
from retbench.engines.device import get_device
from retbench.errors import UsageError
from retbench.retrievers.embedding_retriever import compute_token_budget


@dataclass(frozen=True)
class ResolvedCrossEncoder:
    """A cross-encoder whose weights were found. A language model has a prompt and the tokens of its answers."""

    settings: CrossEncoderSettings
    card: ModelCard
    weights: weights.LocalWeights
    max_length: int | None
    prompt: PairPrompt | None = None
    answers: AnswerTokens | None = None

    def describe(self) -> dict[str, Any]:
        """Return everything that decides a score of a pair."""
        code = remote_code.compute_code_digest(self.weights.folder)
        return {
            "weights": self.weights.fingerprint,
            "max_length": self.max_length,
            "dtype": self.settings.dtype,
            **({"code": code} if code else {}),
            **self._describe_prompt(),
        }

    def _describe_prompt(self) -> dict[str, Any]:
        if self.prompt is None:
            return {}
        instruction = {"instruction": self.prompt.instruction} if self.prompt.uses_instruction else {}
        answers = {"answers": list(self.answers)} if self.answers else {}
        return {"prompt": list(self.prompt.pieces), **instruction, **answers}

    @cached_property
    def pair_tokenizer(self) -> PairTokenizer:
        """How the model reads a pair."""
        return load_pair_tokenizer(self.weights.folder, self.max_length, self.prompt)

    def load(self) -> CrossEncoder:
        """Load the weights."""
        return load_cross_encoder(
            self.weights.folder, self.pair_tokenizer, self.settings.dtype, get_device(), self.answers
        )

    @staticmethod
    def compute_token_budget() -> int:
        """The most padded tokens of a batch on this machine."""
        return compute_token_budget(get_device().type, memory.get_thread_count())


def resolve_cross_encoder(
    settings: CrossEncoderSettings, task_instruction: str | None, log_status: Callable[[str], None]
) -> ResolvedCrossEncoder:
    """Find a cross-encoder. A hub repository without a card is taken for the cross-encoder that the user names."""
    card = _find_card(settings)
    local = weights.obtain_weights(card, None, log_status)
    require_cross_encoder(local.folder, card.pair_prompt is not None)
    window = model_folders.read_context_window(local.folder)
    limit = settings.max_length or card.max_length or read_pair_limit(local.folder, window)
    if limit and window and limit > window:
        raise UsageError(
            f"max_length={limit}: the context window of {card.name} has {window} tokens", f"give {window} or less"
        )
    prompt = card.pair_prompt or (read_pair_prompt(local.folder) if reads_chat(local.folder) else None)
    if settings.instruction and not (prompt and prompt.uses_instruction):
        raise UsageError(f"the cross-encoder {card.name} reads no instruction", "leave instruction= out")
    if prompt is None:
        return ResolvedCrossEncoder(settings, card, local, limit)
    answers = None
    if is_language_model(local.folder):
        answers = find_answer_tokens(local.folder, prompt, is_from_card=card.pair_prompt is not None)
    prompt = choose_instruction(prompt, settings.instruction, task_instruction)
    return ResolvedCrossEncoder(settings, card, local, limit, prompt, answers)


def _find_card(settings: CrossEncoderSettings) -> ModelCard:
    if settings.model is None:
        raise UsageError(
            "the reranker cross has no model", "name a cross-encoder: cross:model=NAME (retbench list models)"
        )
    card = catalog.find_model_card(settings.model)
    if card.kind == "lexical":
        raise UsageError(f"{card.name} is a lexical model, not a cross-encoder", "name one: cross:model=NAME")
    return replace(card, kind="cross-encoder")
