"""What a source hands over: rows of text and judgments, as they stream by.

Every source (a BEIR folder, a generator, a hub dataset) is a function that returns one `Raw`; checking, counting,
fingerprinting and storing happen once, in `compiled.py`, for all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class TextRow(NamedTuple):
    """A document or a query; `where` says where it was read, for error messages."""

    id: str
    title: str
    text: str
    where: str = ""


class Judgment(NamedTuple):
    """How relevant a document is to a query; above zero is relevant."""

    query: str
    document: str
    grade: int
    where: str = ""


class Exclusion(NamedTuple):
    """A document that must not be ranked for a query."""

    query: str
    document: str


@dataclass(frozen=True)
class RawCollection:
    """One collection before it was checked; the iterables are consumed once.

    In a user's own collection a judgment of a row that does not exist, a repeated one, or an empty query is a mistake
    and an error. A `published` one is what everybody measures on, as it is: a judged document that does not exist is
    never found, a judgment of an unknown query is left out, and the manifest says how many there were; of repeated
    judgments the last one counts, as in BEIR's and mteb's loaders.
    """

    documents: Iterable[TextRow]
    queries: Iterable[TextRow]
    splits: dict[str, Iterable[Judgment]]
    excluded: Iterable[Exclusion] = ()
    published: bool = False
