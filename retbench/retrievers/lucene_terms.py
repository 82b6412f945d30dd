r"""The terms of a text as Lucene's EnglishAnalyzer finds them, which Anserini and Pyserini use for every English index.

The words are those of Unicode's text segmentation (UAX #29), as in Lucene's StandardTokenizer: "don't", "3.14" and
"a_b" are one word, "well-known" is two, an emoji is a word. Then, in this order: "'s" at the end goes, letters become
small, Lucene's 33 stop words go, and the Porter stemmer shortens the rest. Lucene follows Unicode 12.1: letters that
are younger than 2019 are words here and not there.
"""

import re
from collections.abc import Iterable, Iterator

from retbench.retrievers.porter_stemmer import stem_word

MAX_WORD_LENGTH = 255  # Lucene cuts longer words into pieces
APOSTROPHES = "'\u2019\uff07"
STOPWORDS = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not",
        "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was",
        "will", "with",
    }
)  # fmt: skip
# a word of ASCII: letters joined by . ' : and digits joined by . , ; ' with underscores between and around
ASCII_PART = r"(?:[A-Za-z](?:[.':]?[A-Za-z])*|[0-9](?:[.,;']?[0-9])*)+"
ASCII_WORD = rf"_*{ASCII_PART}(?:_+{ASCII_PART})*_*"
# pictures in Unicode 12.1 that later versions do not count as such
OLD_PICTURES = (
    r"\u2388\u2600-\u2605\u2607-\u2612\u2616-\u2685\u2690-\u2705\u270e-\u2711\u2763-\u2767\U0001f000-\U0001f0ff"
    r"\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f16f\U0001f260-\U0001f265\U0001f300-\U0001f64f"
)


def _build_word_pattern() -> str:
    """The pattern of one word. A mark belongs to the letter before it; some signs join letters, some join digits."""
    marks = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
    hebrew, other = rf"\p{{WB=Hebrew_Letter}}{marks}", rf"(?![\xb8\u02e5-\u02eb])\p{{WB=ALetter}}{marks}"
    quoted = rf"\p{{WB=Double_Quote}}{marks}(?=\p{{WB=Hebrew_Letter}})|\p{{WB=Single_Quote}}{marks}"
    letter = rf"(?:{hebrew}(?:{quoted})?|{other})"
    digit, katakana = rf"\p{{WB=Numeric}}{marks}", rf"\p{{WB=Katakana}}{marks}"
    in_words = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}:]{marks}"
    in_numbers = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{marks}"
    letters, number = rf"{letter}(?:(?:{in_words})?{letter})*", rf"{digit}(?:(?:{in_numbers})?{digit})*"
    part, underscore = rf"(?:(?:{letters}|{number})+|(?:{katakana})+)", rf"\p{{WB=ExtendNumLet}}{marks}"
    word = rf"(?:{underscore})*{part}(?:(?:{underscore})+{part})*(?:{underscore})*"
    ideogram = rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{marks}"
    south_east_asian = rf"(?:\p{{Line_Break=Complex_Context}}{marks})+"
    picture = rf"[\p{{Extended_Pictographic}}{OLD_PICTURES}]{marks}"
    emoji = (
        rf"[#*]\ufe0f?\u20e3{marks}|(?:\p{{Regional_Indicator}}{marks}){{2}}|\u200d?{picture}(?:(?<=\u200d){picture})*"
    )
    return rf"{word}|{ideogram}|{south_east_asian}|{emoji}"


class LuceneTermExtractor:
    """Extracts the terms of texts."""

    def __init__(self) -> None:
        import regex  # imported here because dense runs do not need it; Python's own knows no word-break classes

        self.ascii_words, self.words = re.compile(ASCII_WORD), regex.compile(_build_word_pattern())

    def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The terms of every text, in order."""
        return map(self.extract_terms, texts)

    def extract_terms(self, text: str) -> list[str]:
        """The terms of one text, in order."""
        words = map(_normalize_word, self.split_words(text))
        return [stem_word(word) for word in words if word not in STOPWORDS]

    def split_words(self, text: str) -> Iterator[str]:
        """The words of one text, as written."""
        pattern = self.ascii_words if text.isascii() else self.words
        position = 0
        while found := pattern.search(text, position):
            if found.end() - found.start() > MAX_WORD_LENGTH:
                found = pattern.search(text, found.start(), found.start() + MAX_WORD_LENGTH) or found
            yield found.group()
            position = found.end()


def _normalize_word(word: str) -> str:
    if len(word) > 1 and word[-1] in "sS" and word[-2] in APOSTROPHES:
        word = word[:-2]
    return word.lower() if word.isascii() else "".join(map(_lower_letter, word))


def _lower_letter(letter: str) -> str:
    """One small letter for one letter; Python alone writes a sigma at the end of a word differently."""
    return letter.lower()[:1]
