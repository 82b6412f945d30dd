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
from retbench.engines.tokenizers import cut
from retbench.errors import UsageError

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
BATCH = 8  # prompts at once


class Answer(NamedTuple):
    """What came back: a text, or the log-odds of yes against no; and the tokens it took."""

    text: str
    yes: float
    read: int
    written: int


class Generator(Protocol):
    """What rerankers code against; nothing wider."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides an answer, besides the prompt."""
        ...

    def write(self, prompt: str, most: int, form: str = "") -> Answer:
        """The answer to one prompt, of at most so many tokens.

        `form` is a regular expression; an engine that can hold an answer to it does, the others only know the prompt.
        """
        ...

    def odds(self, prompts: Sequence[str]) -> list[Answer]:
        """For every prompt, how much rather yes than no."""
        ...

    def cut(self, texts: Sequence[str], most: int) -> list[str]:
        """Each text's first tokens."""
        ...

    def fits(self, prompt: str, most: int) -> bool:
        """Whether prompt and answer fit into the context."""
        ...


@dataclass(frozen=True)
class Spoken:
    """A language model that lies here, as far as its tokenizer goes: prompts as token ids, texts cut by tokens."""

    name: str
    folder: Path
    weights: str
    dtype: Dtype
    context: int

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        return backbone.tokenizer(self.folder)

    def ids(self, prompt: str) -> list[int]:
        """A prompt as one user turn where there is a chat template, tokenised once."""
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            chat = self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            return list(self.tokenizer(str(chat), add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(f"{prompt}\n")["input_ids"])

    def first(self) -> tuple[list[int], list[int]]:
        """The first token of every spelling of yes, and of no; one that begins both says neither."""
        yes, no = (
            {self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words} for words in (YES, NO)
        )
        if not (yes - no and no - yes):
            raise UsageError(f"yes and no begin with the same token of {self.name}", "use listwise, or another model")
        return sorted(yes - no), sorted(no - yes)

    def cut(self, texts: Sequence[str], most: int) -> list[str]:
        """Each text's first tokens, as the bytes they stand for."""
        return cut(self.tokenizer, texts, most)

    def fits(self, prompt: str, most: int) -> bool:
        """Whether prompt and answer fit into the context."""
        return len(self.ids(prompt)) + most <= self.context


@dataclass(frozen=True)
class Local(Spoken):
    """Run by transformers."""

    device: torch.device

    def describe(self) -> dict[str, Any]:
        """Weights and precision."""
        return {"engine": "transformers", "weights": self.weights, "dtype": self.dtype}

    @cached_property
    def whole(self) -> PreTrainedModel:
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
    def parts(self) -> tuple[backbone.Backbone, lm_head.Head]:
        """Backbone and head apart: the odds need one state a prompt."""
        loaded = backbone.load(self.folder, self.dtype, self.device)
        return loaded, lm_head.load(self.folder, loaded)

    @torch.inference_mode()
    def write(self, prompt: str, most: int, form: str = "") -> Answer:
        """The likeliest token, again and again; a repetition penalty of the folder's own is off."""
        ids = torch.tensor([self.ids(prompt)], device=self.device)
        model: Any = self.whole
        end = self.tokenizer.eos_token_id
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            pad_token_id=self.tokenizer.pad_token_id or end,
        )  # fmt: skip
        new = found[0, ids.shape[1] :]
        return Answer(str(self.tokenizer.decode(new, skip_special_tokens=True)), 0.0, ids.shape[1], len(new))

    def odds(self, prompts: Sequence[str]) -> list[Answer]:
        """From the logits behind the last token: every spelling of yes against every spelling of no."""
        loaded, top = self.parts
        yes, no = self.first()
        answers = []
        for start in range(0, len(prompts), BATCH):
            rows = [np.array(self.ids(prompt), dtype=np.int64) for prompt in prompts[start : start + BATCH]]
            flat, offsets = loaded.states(rows)
            logits = top.logits(flat[offsets[1:] - 1])
            values = logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)
            answers += [Answer("", float(value), len(row), 0) for value, row in zip(values, rows, strict=True)]
        return answers
