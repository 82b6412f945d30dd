"""The Porter stemmer (Porter, 1980) with the two changes of its author's later programs, as Lucene has it.

The changes: "bli" becomes "ble" ("possibly" and "possible" are one term), and "logi" becomes "log" ("geology").
Words of one or two letters stay. PyStemmer's "porter" is the algorithm of the paper, without the changes.
"""

from functools import lru_cache
from itertools import pairwise

VOWELS = "aeiou"

STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
)  # fmt: skip


@lru_cache(maxsize=1 << 18)
def stem_word(word: str) -> str:
    """Return the stem of a lower-case word."""
    if len(word) <= 2:
        return word
    word = _remove_inflection(_remove_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace_suffix(_replace_suffix(word, STEP_2), STEP_3)
    return _remove_final_e(_remove_suffix(word))


def _remove_plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _remove_inflection(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    for suffix in ("ed", "ing"):
        if word.endswith(suffix):
            stem = word.removesuffix(suffix)
            return _mend_stem(stem) if _has_vowel(stem) else word
    return word


def _mend_stem(stem: str) -> str:
    """Mend what is left after "ed" or "ing": conflat(ed), hopp(ing), fil(ing)."""
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if _ends_in_double_consonant(stem):
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _ends_in_short_syllable(stem) else stem


def _replace_suffix(word: str, endings: dict[str, str]) -> str:
    """Replace the longest of the endings if a vowel and a consonant are before it."""
    for length in range(min(7, len(word)), 2, -1):
        ending = word[-length:]
        if ending in endings:
            stem = word[:-length]
            return stem + endings[ending] if _measure(stem) else word
    return word


def _remove_suffix(word: str) -> str:
    """Remove the longest ending of step 4 from a stem of more than one syllable."""
    endings = [ending for ending in STEP_4 if word.endswith(ending)]
    if not endings:
        return word
    ending = max(endings, key=len)
    stem = word.removesuffix(ending)
    if ending == "ion" and not stem.endswith(("s", "t")):
        return word
    return stem if _measure(stem) > 1 else word


def _remove_final_e(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_in_short_syllable(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _mark_consonants(word: str) -> list[bool]:
    """For each letter, whether it is a consonant; "y" is one at the start and after a vowel."""
    marks: list[bool] = []
    for letter in word:
        marks.append((not marks or not marks[-1]) if letter == "y" else letter not in VOWELS)
    return marks


def _measure(stem: str) -> int:
    """The number of places where a consonant follows a vowel."""
    marks = _mark_consonants(stem)
    return sum(after and not before for before, after in pairwise(marks))


def _has_vowel(stem: str) -> bool:
    return not all(_mark_consonants(stem))


def _ends_in_double_consonant(stem: str) -> bool:
    return len(stem) > 1 and stem[-1] == stem[-2] and _mark_consonants(stem)[-1]


def _ends_in_short_syllable(stem: str) -> bool:
    """Whether the end is consonant, vowel, consonant, and the last one is not w, x or y."""
    return _mark_consonants(stem)[-3:] == [True, False, True] and stem[-1] not in "wxy"
