"""Generators: a language model that answers a prompt, or scores yes against no. Decoding is greedy, without sampling.

Three engines implement the protocol: transformers (here), vLLM (`vllm_generator.py`) and a chat server
(`chat_client.py`). The first two use the same token ids, made by `GeneratorBase`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retbench.cards.model import Dtype
from retbench.engines import backbone, lm_head, model_loader, text_config
from retbench.engines.chat_template import render_chat
from retbench.engines.fingerprints import read_json_object
from retbench.engines.memory import compute_in_halves
from retbench.engines.tokenizers import load_tokenizer, truncate_texts
from retbench.errors import DataError, UsageError

YES_SPELLINGS, NO_SPELLINGS = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
PROMPTS_PER_BATCH = 8
REASONING_TOKENS = 8192  # room for the reasoning before an answer; half of a context that is too short for it
OPEN_REASONING, END_OF_REASONING = "<think>", "</think>"


class GeneratedAnswer(NamedTuple):
    """The answer of a model: a text, or the log-odds of yes against no; and its token counts.

    `cut` is true if the answer ended at a limit of tokens and not by itself.
    """

    text: str
    log_odds: float
    prompt_tokens: int
    answer_tokens: int
    cut: bool = False


class Generator(Protocol):
    """The interface of all generators that rerankers use."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def reasoning_limit(self) -> int:
        """The answer tokens of a model that reasons before it answers; 0 for any other, and for an unknown one."""
        ...

    def describe(self) -> dict[str, Any]:
        """The settings that determine an answer, besides the prompt."""
        ...

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The answer to one prompt, with at most `max_tokens` tokens.

        `pattern` is a regular expression for the answer. Engines that cannot enforce it ignore it.
        """
        ...

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """For each prompt, the log-odds of yes against no."""
        ...

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """The first tokens of each text."""
        ...

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context length."""
        ...


@dataclass(frozen=True)
class GeneratorBase:
    """What generators with local weights share: the tokenizer, prompts as token ids, and the context length."""

    name: str
    folder: Path
    weights: str
    dtype: Dtype
    context_length: int
    is_reasoning_model: bool = field(default=False, kw_only=True)

    @property
    def reasoning_limit(self) -> int:
        """The answer tokens of a reasoning model, by its card or its chat template; 0 for any other model."""
        reasons = self.is_reasoning_model or self.opens_reasoning
        return min(REASONING_TOKENS, self.context_length // 2) if reasons else 0

    @cached_property
    def opens_reasoning(self) -> bool:
        """Whether the chat template ends inside the reasoning, so that an answer starts there without its mark."""
        return bool(self.tokenizer.chat_template) and self._render_chat("").rstrip().endswith(OPEN_REASONING)

    def describe_model(self, engine: str) -> dict[str, Any]:
        """Engine, weights and dtype; and the limit of a reasoning model, which decides where its answer ends."""
        limit = {"reasoning_limit": self.reasoning_limit} if self.reasoning_limit else {}
        return {"engine": engine, "weights": self.weights, "dtype": self.dtype, **limit}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder."""
        return load_tokenizer(self.folder)

    def tokenize_prompt(self, prompt: str, close_reasoning: bool = False) -> list[int]:
        """Token ids of a prompt; as one user turn if the model has a chat template.

        With `close_reasoning`, reasoning that the template opens is closed at once: the next token is the answer.
        """
        if self.tokenizer.chat_template:
            chat = self._render_chat(prompt)
            if close_reasoning and self.opens_reasoning:
                chat = f"{chat.rstrip()}\n\n{END_OF_REASONING}\n\n"
            return list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(f"{prompt}\n")["input_ids"])

    def _render_chat(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return render_chat(self.tokenizer, turns, add_generation_prompt=True, enable_thinking=False)

    def build_answer(self, text: str, prompt_tokens: int, answer_tokens: int, max_tokens: int) -> GeneratedAnswer:
        """An answer with the mark of reasoning that the chat template opened."""
        whole_text = f"{OPEN_REASONING}{text}" if self.opens_reasoning else text
        return GeneratedAnswer(whole_text, 0.0, prompt_tokens, answer_tokens, answer_tokens >= max_tokens)

    def find_yes_no_tokens(self) -> tuple[list[int], list[int]]:
        """The first tokens of all spellings of yes and of no, without those that both have."""
        yes, no = (
            {self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
            for words in (YES_SPELLINGS, NO_SPELLINGS)
        )
        if not (yes - no and no - yes):
            raise UsageError(
                f"yes and no start with the same token in {self.name}", "use --rerank listwise, or another model"
            )
        return sorted(yes - no), sorted(no - yes)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """The first tokens of each text, as the original characters."""
        return truncate_texts(self.tokenizer, texts, max_tokens)

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context length."""
        return len(self.tokenize_prompt(prompt)) + max_tokens <= self.context_length


@dataclass(frozen=True)
class NumberCheck(LogitsProcessor):
    """Raises an error if the logits after the prompt are no numbers: an answer would mean nothing."""

    model: str
    prompt_tokens: int

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Check the first logits, and return them."""
        if input_ids.shape[1] == self.prompt_tokens and bool((scores.isnan() | scores.isposinf()).any()):
            cause = f"{self.model} gives logits that are NaN or infinite"
            raise DataError(cause, "try --set dtype=float32, or another model")
        return scores


@dataclass(frozen=True)
class TransformersGenerator(GeneratorBase):
    """A generator that runs in transformers."""

    device: torch.device

    def describe(self) -> dict[str, Any]:
        """Engine, weights and dtype; and the stop tokens, if the folder has others for generation."""
        return {**self.describe_model("transformers"), **_describe_stop_tokens(self.folder)}

    @cached_property
    def causal_model(self) -> PreTrainedModel:
        """The whole causal language model, for generation. Of its generation settings only the stop tokens count."""
        options = model_loader.get_device_map_options(self.device)
        model: Any = model_loader.load_language_model(self.folder, self.dtype, options)
        model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
        loaded: PreTrainedModel = model.to(self.device).eval()
        return loaded

    @cached_property
    def backbone_and_head(self) -> tuple[backbone.Backbone, lm_head.LMHead]:
        """Backbone and language-model head, loaded separately: yes/no scores need the logits of one state only."""
        loaded_backbone = backbone.load_backbone(self.folder, self.dtype, self.device)
        return loaded_backbone, lm_head.load_lm_head(self.folder, loaded_backbone)

    @torch.inference_mode()
    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """Greedy decoding."""
        ids = torch.tensor([self.tokenize_prompt(prompt)], device=self.device)
        model: Any = self.causal_model
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([NumberCheck(self.name, ids.shape[1])]),
        )  # fmt: skip
        new_ids = output[0, ids.shape[1] :]
        text = str(self.tokenizer.decode(new_ids, skip_special_tokens=True))
        return self.build_answer(text, ids.shape[1], len(new_ids), max_tokens)

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """From the logits of the last token: all spellings of yes against all spellings of no."""
        rows = [np.array(self.tokenize_prompt(prompt, close_reasoning=True), dtype=np.int64) for prompt in prompts]
        answers = []
        for start in range(0, len(rows), PROMPTS_PER_BATCH):
            batch = np.arange(start, min(start + PROMPTS_PER_BATCH, len(rows)))
            for part, values in compute_in_halves(batch, lambda numbers: self._score_rows([rows[n] for n in numbers])):
                answers += [GeneratedAnswer("", value, len(rows[n]), 0) for n, value in zip(part, values, strict=True)]
        return answers

    def _score_rows(self, rows: list[np.ndarray]) -> list[float]:
        loaded_backbone, head = self.backbone_and_head
        yes, no = self.find_yes_no_tokens()
        flat, offsets = loaded_backbone.compute_states(rows)
        logits = head.compute_logits(flat[offsets[1:] - 1])
        values: list[float] = (logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)).tolist()
        return values


def _describe_stop_tokens(folder: Path) -> dict[str, Any]:
    """The stop tokens of generation_config.json, which is not in the fingerprint, where config.json has others."""
    file = folder / "generation_config.json"
    stop_tokens = read_json_object(file).get("eos_token_id") if file.is_file() else None
    if stop_tokens is None or stop_tokens == text_config.read_text_settings(folder).get("eos_token_id"):
        return {}
    return {"stop_tokens": stop_tokens}
