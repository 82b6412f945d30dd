"""The rows that a dataset source returns: texts and judgments, streamed.

Every source (a BEIR folder, a generator, a hub dataset) returns a `RawCollection`. Checking, counting, fingerprinting
and storing are the same for all sources, in `collection_cache.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class TextRow(NamedTuple):
    """A document or a query; `where` is its place in the source, for error messages.

    `image` is an encoded image file. A row that is read back from a stored collection has neither of the two: its image
    is read through `Texts.images`, and only where it is needed.
    """

    id: str
    title: str
    text: str
    where: str = ""
    image: bytes | None = None


class Judgment(NamedTuple):
    """The relevance grade of a document for a query; above zero is relevant."""

    query: str
    document: str
    grade: int
    where: str = ""


class ListedDocument(NamedTuple):
    """A document that a first stage found for a query, with its score."""

    query: str
    document: str
    score: float


class Exclusion(NamedTuple):
    """A document that must not be ranked for a query."""

    query: str
    document: str


@dataclass(frozen=True)
class RawCollection:
    """One collection before it is checked; the iterables can be consumed once.

    In a user's collection a judgment of an unknown row, a repeated judgment or an empty query is an error. A
    `published` collection is used as it is: a judged document that does not exist is never found, a judgment of an
    unknown query is left out (the manifest counts both), and of repeated judgments the last one counts, as in the
    loaders of BEIR and mteb. `candidates` are the rankings of a first stage, best first, if the source has them.
    """

    documents: Iterable[TextRow]
    queries: Iterable[TextRow]
    splits: dict[str, Iterable[Judgment]]
    excluded: Iterable[Exclusion] = ()
    published: bool = False
    candidates: Iterable[ListedDocument] = ()
