"""The embedded suite `stdlib-unified`: text, code and page images of Python's standard library in one corpus.

It asks whether one model serves all kinds of rows. Each documented definition takes part in one pairing only, so every
query has relevant documents of one kind, and no document of another kind answers it too:

    text-to-text    the summary line of a docstring, the rest of it
    text-to-page    the same, with the rest drawn as a page
    text-to-code    the first paragraph of a docstring, the function without it
    code-to-text    the same, turned round
    page-to-code    a page with the first paragraph, the function

Ids begin with the kind: `code:...` is a document, `text-to-code:...` a query. Pairs, filters and pages are those of
`stdlib` and `stdlib-pages`; beside a page are its characters, which a model of words reads.
"""

import hashlib
from collections.abc import Iterator
from itertools import product

from retbench.corpora import stdlib_pages, stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.stdlib_suite import StdlibPair

RULES_VERSION = 1  # increase it with every change below that changes a collection, so that caches are rebuilt
NAME = "stdlib-unified"
TEXT, CODE, PAGE = "text", "code", "page"
CODE_PAIRINGS = ((TEXT, CODE), (CODE, TEXT), (PAGE, CODE))  # kinds of a query and of its documents
TEXT_PAIRINGS = ((TEXT, TEXT), (TEXT, PAGE))


def compute_stamp() -> str:
    """Compute a name of the interpreter build, the rules and the libraries that draw."""
    return f"{stdlib_pages.compute_stamp()}-unified-r{RULES_VERSION}"


def generate_collection() -> RawCollection:
    """Generate the collection; its pages are drawn as they are read."""
    documents: list[TextRow] = []
    queries: list[TextRow] = []
    splits: dict[str, list[Judgment]] = {"train": [], "test": []}
    for (query_kind, document_kind), group in _iterate_groups():
        asked = stdlib_suite.drop_repeated(_build_query_row(pair, query_kind, document_kind) for pair in group)
        found = stdlib_suite.drop_repeated(_build_document_row(pair, query_kind, document_kind) for pair in group)
        queries += asked
        documents += found
        splits[stdlib_suite.assign_split(group)] += [Judgment(q.id, d.id, 1, q.where) for q, d in product(asked, found)]
    return RawCollection(stdlib_pages.draw_rows(documents, PAGE), stdlib_pages.draw_rows(queries, PAGE), dict(splits))


def _iterate_groups() -> Iterator[tuple[tuple[str, str], list[StdlibPair]]]:
    """Iterate over groups of pairs, each with its pairing; a definition is in one group at most."""
    shares = len(CODE_PAIRINGS) + len(TEXT_PAIRINGS)
    code_groups = stdlib_suite.build_groups(
        "stdlib-code", lambda pair: _draw_number(pair.id, shares) < len(CODE_PAIRINGS)
    )
    asked = {pair.normalize_texts()[0] for group in code_groups for pair in group}
    text_groups = stdlib_suite.build_groups(
        "stdlib-text",
        lambda pair: (
            _draw_number(pair.id, shares) >= len(CODE_PAIRINGS)
            and pair.normalize_texts()[0] not in asked  # else two definitions of one query had documents of two kinds
        ),
    )
    for groups, pairings in ((code_groups, CODE_PAIRINGS), (text_groups, TEXT_PAIRINGS)):
        for group in groups:
            yield pairings[_draw_number(f"pairing {group[0].id}", len(pairings))], group


def _draw_number(text: str, limit: int) -> int:
    """Draw a number below the limit, by a hash of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % limit


def _build_query_row(pair: StdlibPair, query_kind: str, document_kind: str) -> TextRow:
    text = pair.document if query_kind == CODE else pair.query
    return TextRow(f"{query_kind}-to-{document_kind}:{pair.id}", "", text, pair.where)


def _build_document_row(pair: StdlibPair, query_kind: str, document_kind: str) -> TextRow:
    text = pair.query if query_kind == CODE else pair.document
    return TextRow(f"{document_kind}:{pair.id}", "", text, pair.where)
