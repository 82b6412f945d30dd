"""The terms of lexical retrievers: stemmed words without stop words."""

import logging
from collections.abc import Iterable
from typing import Any

from retbench.cards.model import LexicalSettings
from retbench.errors import DataError, suggest_names


def import_bm25s() -> Any:
    """Import the library when it is needed, and keep it quiet: its import resets the level, and it logs every step."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def _check_stopwords(language: str) -> None:
    try:
        import_bm25s().tokenize([""], stopwords=language, return_ids=False, show_progress=False)
    except ValueError as problem:
        raise DataError(
            f"there are no stop words of the language {language!r}", "write one such as en, de, fr or es"
        ) from problem


class TermExtractor:
    """Extracts the terms of texts, with the settings of a model card."""

    def __init__(self, settings: LexicalSettings) -> None:
        import Stemmer  # imported here because dense runs do not need it

        if settings.stemmer not in Stemmer.algorithms():
            raise DataError(
                f"there is no stemmer {settings.stemmer!r}", suggest_names(settings.stemmer, Stemmer.algorithms())
            )
        _check_stopwords(settings.stopwords)
        self.stopwords = settings.stopwords
        self.stemmer = Stemmer.Stemmer(settings.stemmer)

    def __call__(self, texts: Iterable[str]) -> list[list[str]]:
        """The terms of every text, in order."""
        bm25s = import_bm25s()

        words: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=self.stopwords, stemmer=self.stemmer, return_ids=False, show_progress=False
        )
        return words
