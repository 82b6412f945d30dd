"""How a cross-encoder reads a pair: joined by its tokenizer's own template, or inside of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from retbench.cards.pair_prompt import PairPrompt, fill_piece
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, InapplicableError

QUERY_SHARE = (3, 4)  # of the limit: the most tokens of a query in a piece of its own, as in the authors' codes
PROBES = ("0", "1 2 3 4")  # documents without a common end: the end that the tokens of both share is the prompt's


@dataclass(frozen=True)
class TokenizedPairs:
    """Pairs of a query and a document as the model reads them: for each pair its inputs by name, and what was cut."""

    inputs: list[dict[str, list[int]]]
    is_cut: list[bool]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each pair."""
        return np.array([len(pair["input_ids"]) for pair in self.inputs])


def join_tokenized_pairs(parts: Sequence[TokenizedPairs]) -> TokenizedPairs:
    """The pairs of several queries as one."""
    return TokenizedPairs(
        [pair for part in parts for pair in part.inputs], [is_cut for part in parts for is_cut in part.is_cut]
    )


class PairTokenizer(Protocol):
    """Makes the inputs of pairs."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder."""
        ...

    def tokenize_pairs(self, query: str, documents: Sequence[str]) -> TokenizedPairs:
        """The inputs of one query with each document."""
        ...


def show_pair(pair_tokenizer: PairTokenizer, query: str, document: str) -> dict[str, Any]:
    """One pair as text and token ids, as the model reads it."""
    (pair,) = pair_tokenizer.tokenize_pairs(query, [document]).inputs
    return {"prompt": pair_tokenizer.tokenizer.decode(pair["input_ids"]), "ids": pair["input_ids"]}


@dataclass(frozen=True)
class JoinedPairTokenizer:
    """Joins query and document by the tokenizer's own template; of a pair that is too long the longer text is cut."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None

    def tokenize_pairs(self, query: str, documents: Sequence[str]) -> TokenizedPairs:
        """The inputs of one query with each document."""
        encoded = self.tokenizer(
            [query] * len(documents), list(documents), max_length=self.max_length,
            truncation="longest_first" if self.max_length else False,
        )  # fmt: skip
        inputs = [{name: encoded[name][row] for name in encoded} for row in range(len(documents))]
        return TokenizedPairs(inputs, [bool(encoding.overflowing) for encoding in encoded.encodings or ()])


@dataclass(frozen=True)
class PromptedPairTokenizer:
    """Puts query and document into a prompt; of a pair that is too long the end of the document is cut.

    A query in a piece of its own has at most three quarters of the limit.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    prompt: PairPrompt

    def tokenize_pairs(self, query: str, documents: Sequence[str]) -> TokenizedPairs:
        """The inputs of one query with each document."""
        pieces = self.prompt.pieces
        place = next(row for row, piece in enumerate(pieces) if "{document}" in piece)
        head, tail = (self._tokenize_fixed(part, query) for part in (pieces[:place], pieces[place + 1 :]))
        middle = self._tokenize_documents(pieces[place], query, documents)
        room = self.max_length - len(head) - len(tail) if self.max_length else None
        is_cut = [room is not None and len(ids) > room for ids in middle]
        if room is not None and any(is_cut):
            middle = self._cut_documents(middle, room, self._find_fixed_end(pieces[place], query), query)
        rows = [head + ids + tail for ids in middle]
        return TokenizedPairs([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows], is_cut)

    def _tokenize_fixed(self, pieces: Sequence[str], query: str) -> list[int]:
        """The tokens of pieces without the document."""
        share, whole = QUERY_SHARE
        joined: list[int] = []
        for piece, ids in zip(pieces, self._tokenize([self._fill(piece, query) for piece in pieces]), strict=True):
            limit = self.max_length * share // whole if self.max_length and "{query}" in piece else None
            joined += ids[:limit]
        return joined

    def _tokenize_documents(self, piece: str, query: str, documents: Sequence[str]) -> list[list[int]]:
        return self._tokenize([self._fill(piece, query, document) for document in documents])

    def _fill(self, piece: str, query: str, document: str = "") -> str:
        return fill_piece(piece, instruction=self.prompt.instruction or "", query=query, document=document)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

    def _find_fixed_end(self, piece: str, query: str) -> list[int]:
        """The tokens behind the document, in its piece."""
        first, second = self._tokenize_documents(piece, query, PROBES)
        count = next(n for n, (a, b) in enumerate(zip(reversed(first), reversed(second), strict=False)) if a != b)
        return first[len(first) - count :]

    def _cut_documents(self, rows: list[list[int]], room: int, end: list[int], query: str) -> list[list[int]]:
        if room <= len(end):
            raise DataError(
                f"max_length={self.max_length} leaves no room for a document: the prompt of the query {query[:60]!r} "
                "is longer", "give a larger max_length",
            )  # fmt: skip
        return [ids[: room - len(end)] + end if len(ids) > room else ids for ids in rows]


def load_pair_tokenizer(folder: Path, max_length: int | None, prompt: PairPrompt | None = None) -> PairTokenizer:
    """The tokenizer of a folder; pairs are put into the prompt, if there is one.

    Without one, a folder with a chat template would read pairs as a chat in a way that is not known.
    """
    tokenizer = load_tokenizer(folder)
    if prompt:
        return PromptedPairTokenizer(tokenizer, max_length, prompt)
    if tokenizer.chat_template:
        raise InapplicableError(
            f"{folder} has a chat template: how it joins query and document is not known",
            "use pointwise:model=NAME with a language model, or another cross-encoder",
        )
    if not tokenizer.is_fast:
        raise InapplicableError(f"the tokenizer of {folder} has no tokenizer.json", "use another cross-encoder")
    return JoinedPairTokenizer(tokenizer, max_length)


def choose_instruction(prompt: PairPrompt, *instructions: str | None) -> PairPrompt:
    """The prompt with the first instruction that is given; a prompt without a place for one stays as it is."""
    given = next(filter(None, instructions), None)
    return replace(prompt, instruction=given) if given and prompt.uses_instruction else prompt
