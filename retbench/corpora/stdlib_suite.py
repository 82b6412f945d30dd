"""The embedded suite `stdlib`: three collections generated from the running Python's standard library.

Text to code, code to text, and text to text. Judgments are automatic: the first paragraph of a docstring is relevant to
its function, and a summary line to the rest of its docstring. To keep them correct, pairs with equal texts are
grouped, a function's name is removed from its code, and whole groups go to train or to test. The filters follow
CodeSearchNet (2019).
"""

import hashlib
import keyword
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.stdlib_definitions import compute_source_stamp, iterate_definitions
from retbench.errors import UsageError, suggest_names

RULES_VERSION = 1  # increase it with every change below that changes a collection, so that caches are rebuilt
NEUTRAL_NAME = "function"
TEST_PERCENT = 20
MAX_PARTNERS = 3  # a text paired with more different texts is too generic to judge

_DUNDER = re.compile(r"__\w+__")
_FORMULA = re.compile(r"[\w.]+(\(.*\))?(\s*[-=]+>.*)?|[\w-]+ = .*")
_BOILERPLATE = re.compile(r"\W*(deprecated|obsolete|same as|see(?! if))\b", re.IGNORECASE)
_STUB = re.compile(r"\s*raise .*")
_EMPTY_WORDS = frozenset(keyword.kwlist) | {"self", "cls", "none", "true", "false", "notimplementederror", NEUTRAL_NAME}


@dataclass(frozen=True)
class StdlibPair:
    """A query and its relevant document."""

    id: str
    query: str
    document: str
    where: str

    def normalize_texts(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return query and document with normalized white space, for comparison with other pairs."""
        return ("query", _normalize_spaces(self.query)), ("document", _normalize_spaces(self.document))

    def build_query_row(self) -> TextRow:
        """Build the row of the query."""
        return TextRow(f"q:{self.id}", "", self.query, self.where)

    def build_document_row(self) -> TextRow:
        """Build the row of the document."""
        return TextRow(self.id, "", self.document, self.where)


def compute_stamp() -> str:
    """Compute a name of the interpreter build and the rules; equal stamps mean equal collections."""
    return f"{compute_source_stamp()}-r{RULES_VERSION}"


def generate_collection(kind: str) -> RawCollection:
    """Generate the collection `stdlib-code`, `stdlib-doc` or `stdlib-text`, with the splits `train` and `test`."""
    if kind not in _PAIR_ITERATORS:
        raise UsageError(f"there is no generator called {kind!r}", suggest_names(kind, _PAIR_ITERATORS))
    documents: list[TextRow] = []
    queries: list[TextRow] = []
    splits: dict[str, list[Judgment]] = {"train": [], "test": []}
    for group in build_groups(kind):
        group_queries = drop_repeated(pair.build_query_row() for pair in group)
        group_documents = drop_repeated(pair.build_document_row() for pair in group)
        queries += group_queries
        documents += group_documents
        splits[assign_split(group)] += [
            Judgment(q.id, d.id, 1, q.where) for q, d in product(group_queries, group_documents)
        ]
    return RawCollection(documents, queries, dict(splits))


@cache
def build_text_groups() -> list[list[StdlibPair]]:
    """Build the groups of stdlib-text."""
    return build_groups("stdlib-text")


def build_groups(kind: str, keep: Callable[[StdlibPair], bool] = lambda _: True) -> list[list[StdlibPair]]:
    """Build the groups of a collection, of its pairs that are kept."""
    return _group_pairs(_drop_ambiguous(list(filter(keep, _PAIR_ITERATORS[kind]()))))


def _drop_ambiguous(pairs: list[StdlibPair]) -> list[StdlibPair]:
    """Drop generic texts, such as "Emit a record." (every log handler) or code that only delegates."""
    partners: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        query, document = pair.normalize_texts()
        partners.setdefault(query, set()).add(document[1])
        partners.setdefault(document, set()).add(query[1])
    return [pair for pair in pairs if all(len(partners[side]) <= MAX_PARTNERS for side in pair.normalize_texts())]


def _group_pairs(pairs: list[StdlibPair]) -> list[list[StdlibPair]]:
    """Group pairs that share a query or a document (union-find), in the order of their first pairs."""
    parent = list(range(len(pairs)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[tuple[str, str], int] = {}
    groups: dict[int, list[StdlibPair]] = {}
    for index, pair in enumerate(pairs):
        for side in pair.normalize_texts():
            low, high = sorted((find(index), find(first.setdefault(side, index))))
            parent[high] = low
    for index, pair in enumerate(pairs):
        groups.setdefault(find(index), []).append(pair)
    return list(groups.values())


def assign_split(group: list[StdlibPair]) -> str:
    """Assign a group to train or test by a hash of its texts; `stdlib-doc` has the same split as `stdlib-code`."""
    texts = sorted({text for pair in group for _, text in pair.normalize_texts()})
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) % 100 < TEST_PERCENT else "train"


def drop_repeated(rows: Iterator[TextRow]) -> list[TextRow]:
    """Keep the first of the rows with equal texts."""
    unique: dict[str, TextRow] = {}
    for row in rows:
        unique.setdefault(_normalize_spaces(row.text), row)
    return list(unique.values())


def _iterate_code_pairs() -> Iterator[StdlibPair]:
    """Pair the first paragraph of a docstring with the function without its docstring and its name."""
    for definition in iterate_definitions():
        query, body = (
            _normalize_spaces(_split_first_paragraph(definition.docstring)[0]),
            _replace_name(definition.name, definition.below),
        )
        if not _DUNDER.fullmatch(definition.name) and _is_informative(query) and _has_statements(body):
            yield StdlibPair(
                definition.id, query, f"{_replace_name(definition.name, definition.above)}\n{body}", definition.where
            )


def _iterate_doc_pairs() -> Iterator[StdlibPair]:
    for pair in _iterate_code_pairs():
        yield StdlibPair(pair.id, pair.document, pair.query, pair.where)


def _iterate_text_pairs() -> Iterator[StdlibPair]:
    """Pair the summary line of a docstring with the text after it."""
    for definition in iterate_definitions():
        summary, rest = (*_split_first_paragraph(definition.docstring), "")[:2]
        if "\n" not in summary and all(map(_is_informative, (summary, rest))) and len(_extract_words(rest)) >= 8:
            yield StdlibPair(definition.id, _normalize_spaces(summary), rest, definition.where)


_PAIR_ITERATORS: dict[str, Callable[[], Iterator[StdlibPair]]] = {
    "stdlib-code": _iterate_code_pairs,
    "stdlib-doc": _iterate_doc_pairs,
    "stdlib-text": _iterate_text_pairs,
}


def _replace_name(name: str, code: str) -> str:
    """Replace a function's name everywhere in its code, so that it cannot be found by name."""
    return re.sub(rf"\b{re.escape(name)}\b", NEUTRAL_NAME, code)


def _is_informative(query: str) -> bool:
    return len(_extract_words(query)) >= 3 and not _FORMULA.fullmatch(query) and not _BOILERPLATE.match(query)


def _has_statements(body: str) -> bool:
    return len(_extract_words(body)) >= 4 and not _STUB.fullmatch(body)


def _extract_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{2,}", text.lower())) - _EMPTY_WORDS


def _split_first_paragraph(docstring: str) -> list[str]:
    return re.split(r"\n\s*\n", docstring, maxsplit=1)


def _normalize_spaces(text: str) -> str:
    return " ".join(text.split())
