"""The prompt tokenizer: turns a text into the token ids of a backbone, for evaluation and for training alike.

It fills the method's prompt template, renders a chat to one string that ends after the method's answer, and tokenizes
the string once. Tokenizing the parts separately and joining the ids would give other ids for most texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from retbench.cards.method import Method, Role
from retbench.corpora.images import ImageRows
from retbench.encoders.query_expansion import expand_rows, register_markers
from retbench.encoders.token_ids import TokenIdBuffer, release_pages
from retbench.encoders.word_tokens import WordTokenizer
from retbench.engines.chat_template import render_chat
from retbench.errors import InapplicableError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

TEXTS_PER_CHUNK = 1024


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, one after the other: text i is `flat[offsets[i]:offsets[i + 1]]`.

    `truncated` and `empty` count texts; `unknown` counts the tokens that stand for text which the tokenizer does not
    know, None if it has no such token. `pooling_starts` is the first pooled token of each text, for methods that pool
    only a part. `word_ids` are the token ids of the words of each text, for sparse methods. `images` are the images of
    the rows that have one; their tokens are among the ids. `role` is what the texts are; `attended` is the number of
    tokens at the start of each text that others read, None if they read all.
    """

    flat: np.ndarray
    offsets: np.ndarray
    truncated: int
    empty: int
    pooling_starts: np.ndarray | None = None
    word_ids: list[np.ndarray] | None = None
    unknown: int | None = None
    images: ImageRows | None = None
    role: Role | None = None
    attended: np.ndarray | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each text."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def select(self, rows: np.ndarray) -> "TokenizedTexts":
        """The given rows in the given order, as a batch."""
        offsets = np.concatenate(([0], np.cumsum(self.lengths[rows])))
        flat = np.concatenate([self[int(row)] for row in rows])
        starts = None if self.pooling_starts is None else self.pooling_starts[rows]
        words = None if self.word_ids is None else [self.word_ids[int(row)] for row in rows]
        release_pages(self.flat)
        images = self.images and self.images.select(rows)
        attended = None if self.attended is None else self.attended[rows]
        return TokenizedTexts(flat, offsets, 0, 0, starts, words, None, images, self.role, attended)


def concatenate_texts(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
    """The texts of all parts in one; a part without pooling starts is pooled from its first token."""
    offsets = np.concatenate(([0], np.cumsum(np.concatenate([part.lengths for part in parts]))))
    starts = None
    if any(part.pooling_starts is not None for part in parts):
        zeros = (np.zeros(len(part), dtype=np.int64) for part in parts)
        starts = np.concatenate(
            [
                none if part.pooling_starts is None else part.pooling_starts
                for part, none in zip(parts, zeros, strict=True)
            ]
        )
    return TokenizedTexts(np.concatenate([part.flat for part in parts]), offsets, 0, 0, starts)


def take_first_words(text: str, max_words: int) -> str:
    """The first words of a text, separated by single spaces."""
    return " ".join(text.split()[:max_words])


def fill_template(method: Method, text: str, role: Role, instruction: str) -> str:
    """The method's template with instruction and text filled in."""
    return method.get_template(role).replace("{instruction}", instruction).replace("{text}", text)


def find_unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id that stands only for text which the tokenizer does not know; None for one that knows every byte."""
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) else unknown


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer with a method's prompt template; `instruction` is that of the task."""

    tokenizer: "PreTrainedTokenizerBase"
    method: Method
    instruction: str = ""

    @property
    def end_token(self) -> str | None:
        """The token that the method appends, if it appends one; None if the tokenizer lacks it."""
        token = self.tokenizer.pad_token if self.method.eos_is_pad else self.tokenizer.eos_token
        return None if token is None else str(token)

    @cached_property
    def _reader(self) -> "PreTrainedTokenizerBase":
        """The tokenizer with the method's markers."""
        return register_markers(self.tokenizer, self.method)

    def __post_init__(self) -> None:
        missing = [
            name
            for name, is_needed, value in (
                ("a chat template", self.method.chat, self.tokenizer.chat_template),
                (
                    f"{'a padding' if self.method.eos_is_pad else 'an end-of-sequence'} token",
                    self.method.eos,
                    self.end_token,
                ),
            )
            if is_needed and not value
        ]
        if missing:
            raise InapplicableError(
                f"method {self.method.name} needs {missing[0]}, which this model does not have",
                "use --method last or mean",
            )

    def build_prompt(self, text: str, role: Role) -> str:
        """The exact prompt for one text (already truncated, if the method truncates texts)."""
        user = fill_template(self.method, text, role, self.instruction)
        if not self.method.chat:
            return user
        system = [{"role": "system", "content": self.method.system}] if self.method.system is not None else []
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": self.method.answer}]
        chat = render_chat(self.tokenizer, [*system, *turns])
        return chat[: chat.rindex(self.method.answer) + len(self.method.answer)]

    def tokenize(self, texts: Iterable[str], role: Role, limit: int) -> TokenizedTexts:
        """Token ids of all texts. Texts longer than `limit` tokens are truncated and counted."""
        starts: list[int] = []
        words: list[np.ndarray] = []
        attended: list[np.ndarray] = []
        word_tokenizer = WordTokenizer(self.tokenizer)
        truncated = empty = unknown = 0
        unknown_id = find_unknown_id(self.tokenizer)
        iterator = iter(texts)
        with TokenIdBuffer() as ids:
            while chunk := list(islice(iterator, TEXTS_PER_CHUNK)):
                empty += sum(not text.strip() for text in chunk)
                if role == "document" and self.method.document_words:
                    chunk = [take_first_words(text, self.method.document_words) for text in chunk]
                prompt_limit = None if self.method.cut == "text" else limit
                cut_texts = 0
                if prompt_limit is None:
                    chunk, cut_texts = self._truncate_texts(chunk, limit)
                prompts = [self.build_prompt(text, role) for text in chunk]
                encoded, cut_prompts = self._encode_prompts(prompts, prompt_limit, role)
                rows: list[list[int]] = encoded["input_ids"]
                unknown += 0 if unknown_id is None else sum(row.count(unknown_id) for row in rows)
                rows, read = expand_rows(self._reader, self.method, role, list(map(self._append_eos, rows)))
                ids.append(rows)
                attended.extend([] if read is None else [read])
                starts.extend(self._find_text_starts(encoded, prompts, chunk, role))
                words.extend(word_tokenizer.tokenize_words(chunk) if self._needs_words else [])
                truncated += cut_texts + cut_prompts
            return TokenizedTexts(
                ids.read_all(),
                ids.compute_offsets(),
                truncated,
                empty,
                np.array(starts) if starts else None,
                words or None,
                None if unknown_id is None else unknown,
                role=role,
                attended=np.concatenate(attended) if attended else None,
            )

    @property
    def _needs_words(self) -> bool:
        """Whether the method weights the words of a text (PromptReps)."""
        return self.method.kind != self.method.vector_kind

    def _truncate_texts(self, texts: list[str], limit: int) -> tuple[list[str], int]:
        """The first `limit` tokens of each text, decoded again, and the number of truncated texts."""
        encoded = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=limit)
        truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return self.tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False), truncated

    def _encode_prompts(self, prompts: list[str], limit: int | None, role: Role) -> "tuple[BatchEncoding, int]":
        max_length = None if limit is None else limit - self.method.eos
        is_static = role == "query" and self.method.learned_sparse and self.method.learned_sparse.static_queries
        encoded = self._reader(
            prompts,
            add_special_tokens=self.method.special_tokens and not is_static,
            truncation=max_length is not None,
            max_length=max_length,
        )
        return encoded, sum(bool(encoding.overflowing) for encoding in encoded.encodings)

    def _append_eos(self, ids: list[int]) -> list[int]:
        tokenizer, eos = self.tokenizer, self.tokenizer.eos_token_id
        end = tokenizer.pad_token_id if self.method.eos_is_pad else eos
        tail = [end] if self.method.eos else []
        # an empty text needs one token to have a vector: end-of-sequence, or padding if the model has none
        return (ids + tail) or [eos if eos is not None else tokenizer.pad_token_id]

    def _find_text_starts(
        self, encoded: "BatchEncoding", prompts: list[str], texts: list[str], role: Role
    ) -> Iterator[int]:
        """The token at which the last copy of each text starts; 0 if the text is empty or was truncated away."""
        if self.method.span == "all":
            return
        suffix_length = len(self.method.get_template(role).rpartition("{text}")[2])
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            yield encoded.char_to_token(row, len(prompt) - suffix_length - len(text)) or 0 if text else 0
