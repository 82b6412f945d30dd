"""The words of a text as token ids: the terms that a sparse method may weight.

As in PromptReps' encode.py: lower case, no stop words, all token ids of each word tokenized alone. Two differences:
words are split by a regular expression instead of NLTK, and the stop words are those of bm25s.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\w+")


@cache
def load_stop_words() -> frozenset[str]:
    """English stop words."""
    from bm25s.stopwords import STOPWORDS_EN  # imported here because dense runs do not need it

    return frozenset(STOPWORDS_EN)


@dataclass(frozen=True)
class WordTokenizer:
    """A tokenizer with a cache of the ids of each word."""

    tokenizer: "PreTrainedTokenizerBase"
    known_words: dict[str, list[int]] = field(default_factory=dict)

    def tokenize_words(self, texts: list[str]) -> list[np.ndarray]:
        """For each text the distinct ids of its words, in ascending order."""
        words = [set(WORD.findall(text.lower())) - load_stop_words() for text in texts]
        new_words = sorted(set().union(*words) - self.known_words.keys())
        if new_words:
            self.known_words.update(
                zip(new_words, self.tokenizer(new_words, add_special_tokens=False)["input_ids"], strict=True)
            )
        return [
            np.array(sorted({i for word in text_words for i in self.known_words[word]}), dtype=np.int64)
            for text_words in words
        ]
