"""The embedded suite `stdlib`: three collections made from the running Python's standard library, so always at hand.

Code search from text, text search from code, and text search from text. Nobody judged anything by hand: a docstring's
first paragraph is relevant to the function it stands in, and a summary line to the rest of its docstring. What would
make such judgments wrong is dealt with here: equal texts are pooled into groups, a function's own name is taken out of
its code, and groups, never single pairs, go to train or to test. The filters follow CodeSearchNet (2019).
"""

import hashlib
import keyword
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from retbench.corpora.rows import Judgment, Raw, Row
from retbench.corpora.stdlib_definitions import definitions, source_stamp
from retbench.errors import UsageError, closest

RULES = 1  # raise it with every change below that changes a collection, so that no cache serves the old one
NEUTRAL = "function"
TEST_PERCENT = 20
MOST_PARTNERS = 3  # a text that stands beside more different texts than this says nothing about any of them

_DUNDER = re.compile(r"__\w+__")
_FORMULA = re.compile(r"[\w.]+(\(.*\))?(\s*[-=]+>.*)?|[\w-]+ = .*")
_BOILERPLATE = re.compile(r"\W*(deprecated|obsolete|same as|see(?! if))\b", re.IGNORECASE)
_STUB = re.compile(r"\s*raise .*")
_EMPTY_WORDS = frozenset(keyword.kwlist) | {"self", "cls", "none", "true", "false", "notimplementederror", NEUTRAL}


@dataclass(frozen=True)
class Pair:
    """A query and a document that belong together."""

    id: str
    query: str
    document: str
    where: str

    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """What makes two queries, or two documents, the same: the text, whatever its line breaks."""
        return ("query", _flat(self.query)), ("document", _flat(self.document))

    def query_row(self) -> Row:
        """The query as a row."""
        return Row(f"q:{self.id}", "", self.query, self.where)

    def document_row(self) -> Row:
        """The document as a row."""
        return Row(self.id, "", self.document, self.where)


def stamp() -> str:
    """Names the interpreter build and the rules; equal stamps mean equal collections."""
    return f"{source_stamp()}-r{RULES}"


def generate(kind: str) -> Raw:
    """The collection `stdlib-code`, `stdlib-doc` or `stdlib-text`, with the splits `train` and `test`."""
    if kind not in _KINDS:
        raise UsageError(f"there is no generator called {kind!r}", closest(kind, _KINDS))
    documents: list[Row] = []
    queries: list[Row] = []
    splits: dict[str, list[Judgment]] = {"train": [], "test": []}
    for group in _groups(_distinctive(list(_KINDS[kind]()))):
        asked = _distinct(pair.query_row() for pair in group)
        answers = _distinct(pair.document_row() for pair in group)
        queries += asked
        documents += answers
        splits[split_of(group)] += [Judgment(q.id, d.id, 1, q.where) for q, d in product(asked, answers)]
    return Raw(documents, queries, dict(splits))


@cache
def text_groups() -> list[list[Pair]]:
    """The groups of stdlib-text."""
    return _groups(_distinctive(list(_text_pairs())))


def _distinctive(pairs: list[Pair]) -> list[Pair]:
    """Without "Emit a record." (every log handler) and without code that only calls its namesake on another object."""
    partners: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        query, document = pair.sides()
        partners.setdefault(query, set()).add(document[1])
        partners.setdefault(document, set()).add(query[1])
    return [pair for pair in pairs if all(len(partners[side]) <= MOST_PARTNERS for side in pair.sides())]


def _groups(pairs: list[Pair]) -> list[list[Pair]]:
    """Pairs joined by an equal query or an equal document, by union-find; in the order of their first pairs."""
    parent = list(range(len(pairs)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[tuple[str, str], int] = {}
    groups: dict[int, list[Pair]] = {}
    for index, pair in enumerate(pairs):
        for side in pair.sides():
            low, high = sorted((find(index), find(first.setdefault(side, index))))
            parent[high] = low
    for index, pair in enumerate(pairs):
        groups.setdefault(find(index), []).append(pair)
    return list(groups.values())


def split_of(group: list[Pair]) -> str:
    """Train or test, by a hash of the group's texts on either side: `stdlib-doc` splits as `stdlib-code` does."""
    texts = sorted({text for pair in group for _, text in pair.sides()})
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) % 100 < TEST_PERCENT else "train"


def _distinct(rows: Iterator[Row]) -> list[Row]:
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(_flat(row.text), row)
    return list(kept.values())


def _code_pairs() -> Iterator[Pair]:
    """The first paragraph of a docstring, and the function without the docstring and without its own name."""
    for found in definitions():
        query, body = _flat(_paragraphs(found.docstring)[0]), _anonymous(found.name, found.below)
        if not _DUNDER.fullmatch(found.name) and _says_something(query) and _does_something(body):
            yield Pair(found.id, query, f"{_anonymous(found.name, found.above)}\n{body}", found.where)


def _doc_pairs() -> Iterator[Pair]:
    for pair in _code_pairs():
        yield Pair(pair.id, pair.document, pair.query, pair.where)


def _text_pairs() -> Iterator[Pair]:
    """The summary line of a docstring, where it has one, and what follows it."""
    for found in definitions():
        summary, rest = (*_paragraphs(found.docstring), "")[:2]
        if "\n" not in summary and all(map(_says_something, (summary, rest))) and len(_words(rest)) >= 8:
            yield Pair(found.id, _flat(summary), rest, found.where)


_KINDS: dict[str, Callable[[], Iterator[Pair]]] = {
    "stdlib-code": _code_pairs,
    "stdlib-doc": _doc_pairs,
    "stdlib-text": _text_pairs,
}


def _anonymous(name: str, code: str) -> str:
    """Code that cannot be found by its own name, be it in the signature, a call, a comment or a message."""
    return re.sub(rf"\b{re.escape(name)}\b", NEUTRAL, code)


def _says_something(query: str) -> bool:
    return len(_words(query)) >= 3 and not _FORMULA.fullmatch(query) and not _BOILERPLATE.match(query)


def _does_something(body: str) -> bool:
    return len(_words(body)) >= 4 and not _STUB.fullmatch(body)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{2,}", text.lower())) - _EMPTY_WORDS


def _paragraphs(docstring: str) -> list[str]:
    return re.split(r"\n\s*\n", docstring, maxsplit=1)


def _flat(text: str) -> str:
    return " ".join(text.split())
