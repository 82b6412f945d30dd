"""The generator: a language model that answers a prompt, or says how much rather yes than no; greedy, never sampled.

Three run it behind one protocol: transformers (here), vLLM (`vllm_writer.py`) and a server (`chat.py`). The first two
read the same token ids, which are made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from retbench.cards.model import Dtype
from retbench.engines import backbone, lm_head
from retbench.engines.tokenizers import truncate_texts
from retbench.errors import UsageError

YES_SPELLINGS, NO_SPELLINGS = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
PROMPTS_PER_BATCH = 8  # prompts at once


class GeneratedAnswer(NamedTuple):
    """What came back: a text, or the log-odds of yes against no; and the tokens it took."""

    text: str
    log_odds: float
    prompt_tokens: int
    answer_tokens: int


class Generator(Protocol):
    """What rerankers code against; nothing wider."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides an answer, besides the prompt."""
        ...

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The answer to one prompt, of at most so many tokens.

        `form` is a regular expression; an engine that can hold an answer to it does, the others only know the prompt.
        """
        ...

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """For every prompt, how much rather yes than no."""
        ...

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text's first tokens."""
        ...

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context."""
        ...


@dataclass(frozen=True)
class GeneratorBase:
    """A language model that lies here, as far as its tokenizer goes: prompts as token ids, texts cut by tokens."""

    name: str
    folder: Path
    weights: str
    dtype: Dtype
    context_length: int

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        return backbone.tokenizer(self.folder)

    def tokenize_prompt(self, prompt: str) -> list[int]:
        """A prompt as one user turn where there is a chat template, tokenised once."""
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            chat = self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            return list(self.tokenizer(str(chat), add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(f"{prompt}\n")["input_ids"])

    def find_yes_no_tokens(self) -> tuple[list[int], list[int]]:
        """The first token of every spelling of yes, and of no; one that begins both says neither."""
        yes, no = (
            {self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
            for words in (YES_SPELLINGS, NO_SPELLINGS)
        )
        if not (yes - no and no - yes):
            raise UsageError(f"yes and no begin with the same token of {self.name}", "use listwise, or another model")
        return sorted(yes - no), sorted(no - yes)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text's first tokens, as the bytes they stand for."""
        return truncate_texts(self.tokenizer, texts, max_tokens)

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context."""
        return len(self.tokenize_prompt(prompt)) + max_tokens <= self.context_length


@dataclass(frozen=True)
class TransformersGenerator(GeneratorBase):
    """Run by transformers."""

    device: torch.device

    def describe(self) -> dict[str, Any]:
        """Weights and precision."""
        return {"engine": "transformers", "weights": self.weights, "dtype": self.dtype}

    @cached_property
    def causal_model(self) -> PreTrainedModel:
        """The model with its head, for writing."""
        transformers_logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=getattr(torch, self.dtype),
            attn_implementation=backbone.attention(self.folder),
            trust_remote_code=False,
            use_safetensors=True,
        )
        loaded: PreTrainedModel = model.to(self.device).eval()
        return loaded

    @cached_property
    def backbone_and_head(self) -> tuple[backbone.Backbone, lm_head.LMHead]:
        """Backbone and head apart: the odds need one state a prompt."""
        loaded = backbone.load(self.folder, self.dtype, self.device)
        return loaded, lm_head.load_lm_head(self.folder, loaded)

    @torch.inference_mode()
    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The likeliest token, again and again; a repetition penalty of the folder's own is off."""
        ids = torch.tensor([self.tokenize_prompt(prompt)], device=self.device)
        model: Any = self.causal_model
        end = self.tokenizer.eos_token_id
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            pad_token_id=self.tokenizer.pad_token_id or end,
        )  # fmt: skip
        new = found[0, ids.shape[1] :]
        return GeneratedAnswer(str(self.tokenizer.decode(new, skip_special_tokens=True)), 0.0, ids.shape[1], len(new))

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """From the logits behind the last token: every spelling of yes against every spelling of no."""
        loaded, top = self.backbone_and_head
        yes, no = self.find_yes_no_tokens()
        answers = []
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            rows = [
                np.array(self.tokenize_prompt(prompt), dtype=np.int64)
                for prompt in prompts[start : start + PROMPTS_PER_BATCH]
            ]
            flat, offsets = loaded.states(rows)
            logits = top.compute_logits(flat[offsets[1:] - 1])
            values = logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)
            answers += [GeneratedAnswer("", float(value), len(row), 0) for value, row in zip(values, rows, strict=True)]
        return answers
