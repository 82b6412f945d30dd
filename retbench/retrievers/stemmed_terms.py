"""The terms of lexical retrievers: stemmed words without stop words."""

import logging
from collections.abc import Iterable
from typing import Any

from retbench.cards.model import LexicalSettings


def import_bm25s() -> Any:
    """Import the library when it is needed, and keep it quiet: its import resets the level, and it logs every step."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


class TermExtractor:
    """Extracts the terms of texts, with the settings of a model card."""

    def __init__(self, settings: LexicalSettings) -> None:
        import Stemmer  # imported here because dense runs do not need it

        self.stopwords = settings.stopwords
        self.stemmer = Stemmer.Stemmer(settings.stemmer)

    def __call__(self, texts: Iterable[str]) -> list[list[str]]:
        """The terms of every text, in order."""
        bm25s = import_bm25s()

        words: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=self.stopwords, stemmer=self.stemmer, return_ids=False, show_progress=False
        )
        return words
