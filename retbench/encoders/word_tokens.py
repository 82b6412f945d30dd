"""The words of a text as token ids: the terms a sparse method may weigh.

As in PromptReps' encode.py: lower case, no stop words, every id of every word's own tokenisation. Two things differ:
words are split by a regular expression, not by NLTK, and the stop list is that of bm25s.
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
def stop_words() -> frozenset[str]:
    """English words that are no terms."""
    from bm25s.stopwords import STOPWORDS_EN  # dense runs need it not

    return frozenset(STOPWORDS_EN)


@dataclass(frozen=True)
class WordTokenizer:
    """A tokenizer that remembers the ids of every word it has seen."""

    tokenizer: "PreTrainedTokenizerBase"
    known_words: dict[str, list[int]] = field(default_factory=dict)

    def tokenize_words(self, texts: list[str]) -> list[np.ndarray]:
        """For each text the ids of its words, each once, in rising order."""
        words = [set(WORD.findall(text.lower())) - stop_words() for text in texts]
        new = sorted(set().union(*words) - self.known_words.keys())
        if new:
            self.known_words.update(zip(new, self.tokenizer(new, add_special_tokens=False)["input_ids"], strict=True))
        return [np.array(sorted({i for word in own for i in self.known_words[word]}), dtype=np.int64) for own in words]
