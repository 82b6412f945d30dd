"""Wording: the one way from a text to the token ids a backbone reads, for evaluation and for training.

The method's template is filled, a chat is rendered to one string and cut directly after the method's answer, and the
string is tokenised once: joining pieces that were tokenised apart gives other ids for most texts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from retbench.cards.method import Method, Role
from retbench.encoders.token_ids import TokenIdBuffer, release_pages
from retbench.encoders.word_tokens import WordTokenizer
from retbench.errors import InapplicableError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

TEXTS_PER_CHUNK = 1024


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, one after the other: text i is `flat[offsets[i]:offsets[i + 1]]`.

    `starts` says, where a method does not pool the whole sequence, which token of each text is the first that counts;
    `words` holds, for a sparse method, the ids of each text's own words.
    """

    flat: np.ndarray
    offsets: np.ndarray
    truncated: int
    empty: int
    pooling_starts: np.ndarray | None = None
    word_ids: list[np.ndarray] | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def select(self, rows: np.ndarray) -> "TokenizedTexts":
        """These rows alone, in this order: a batch."""
        offsets = np.concatenate(([0], np.cumsum(self.lengths[rows])))
        flat = np.concatenate([self[int(row)] for row in rows])
        starts = None if self.pooling_starts is None else self.pooling_starts[rows]
        words = None if self.word_ids is None else [self.word_ids[int(row)] for row in rows]
        release_pages(self.flat)
        return TokenizedTexts(flat, offsets, 0, 0, starts, words)


def fill_template(method: Method, text: str, role: Role, instruction: str) -> str:
    """The method's template around one text."""
    return method.get_template(role).replace("{instruction}", instruction).replace("{text}", text)


@dataclass(frozen=True)
class PromptTokenizer:
    """A method bound to a tokenizer; `instruction` is the task's."""

    tokenizer: "PreTrainedTokenizerBase"
    method: Method
    instruction: str = ""

    def __post_init__(self) -> None:
        lacks = [
            what
            for what, wanted, had in (
                ("a chat template", self.method.chat, self.tokenizer.chat_template),
                ("an end-of-sequence token", self.method.eos, self.tokenizer.eos_token),
            )
            if wanted and not had
        ]
        if lacks:
            raise InapplicableError(
                f"method {self.method.name} needs {lacks[0]} and this model has none", "use --method last or mean"
            )

    def build_prompt(self, text: str, role: Role) -> str:
        """The exact string for one text (already cut, where the method cuts texts)."""
        user = fill_template(self.method, text, role, self.instruction)
        if not self.method.chat:
            return user
        system = [{"role": "system", "content": self.method.system}] if self.method.system is not None else []
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": self.method.answer}]
        chat = str(self.tokenizer.apply_chat_template([*system, *turns], tokenize=False))
        return chat[: chat.rindex(self.method.answer) + len(self.method.answer)]

    def tokenize(self, texts: Iterable[str], role: Role, limit: int) -> TokenizedTexts:
        """Token ids for every text; texts longer than `limit` tokens are cut and counted."""
        starts: list[int] = []
        words: list[np.ndarray] = []
        vocabulary = WordTokenizer(self.tokenizer)
        truncated = empty = 0
        iterator = iter(texts)
        with TokenIdBuffer() as ids:
            while chunk := list(islice(iterator, TEXTS_PER_CHUNK)):
                empty += sum(not text.strip() for text in chunk)
                within = None if self.method.cut == "text" else limit
                cut = 0
                if within is None:
                    chunk, cut = self._truncate_texts(chunk, limit)
                prompts = [self.build_prompt(text, role) for text in chunk]
                encoded, also_cut = self._encode_prompts(prompts, within)
                ids.append(list(map(self._append_eos, encoded["input_ids"])))
                starts.extend(self._find_text_starts(encoded, prompts, chunk, role))
                words.extend(vocabulary.tokenize_words(chunk) if self.method.kind != "dense" else [])
                truncated += cut + also_cut
            return TokenizedTexts(
                ids.read_all(),
                ids.compute_offsets(),
                truncated,
                empty,
                np.array(starts) if starts else None,
                words or None,
            )

    def _truncate_texts(self, texts: list[str], limit: int) -> tuple[list[str], int]:
        """Texts as the tokenizer gives them back after their first `limit` ids."""
        encoded = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=limit)
        cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return self.tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False), cut

    def _encode_prompts(self, prompts: list[str], limit: int | None) -> "tuple[BatchEncoding, int]":
        room = None if limit is None else limit - self.method.eos
        encoded = self.tokenizer(
            prompts, add_special_tokens=self.method.special_tokens, truncation=room is not None, max_length=room
        )
        return encoded, sum(bool(encoding.overflowing) for encoding in encoded.encodings)

    def _append_eos(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        tail = [eos] if self.method.eos else []
        # an empty text still needs one token to have a vector: the end-of-sequence, or padding where there is none
        return (ids + tail) or [eos if eos is not None else self.tokenizer.pad_token_id]

    def _find_text_starts(
        self, encoded: "BatchEncoding", prompts: list[str], texts: list[str], role: Role
    ) -> Iterator[int]:
        """Where the last copy of each text begins, in tokens; 0 where it is empty or was cut off."""
        if self.method.span == "all":
            return
        after = len(self.method.get_template(role).rpartition("{text}")[2])
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            yield encoded.char_to_token(row, len(prompt) - after - len(text)) or 0 if text else 0
