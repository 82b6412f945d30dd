"""The words that lexical retrievers count: without stop words, and stemmed."""

import logging
from collections.abc import Iterable

from retbench.cards.model import LexicalSettings

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it narrates every step


class TermExtractor:
    """A text's words, by the settings of a card."""

    def __init__(self, settings: LexicalSettings) -> None:
        import Stemmer  # not needed by dense runs

        self.stopwords = settings.stopwords
        self.stemmer = Stemmer.Stemmer(settings.stemmer)

    def __call__(self, texts: Iterable[str]) -> list[list[str]]:
        """The words of every text, in its order."""
        import bm25s

        words: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=self.stopwords, stemmer=self.stemmer, return_ids=False, show_progress=False
        )
        return words
