"""The embedded suite `stdlib-long`: one passage hidden in a long document, at six lengths, from the standard library.

A document is a row of docstring bodies that have nothing to do with each other. One of them, the needle, belongs to a
query: the summary line it was written under. The needle lies at one of five depths, from the very beginning to the very
end, and a document of the next length holds the same needle at the same depth in more of the same filling. So a query's
scores at two lengths differ by the length alone.

What would give the answer away without reading is dealt with here. Filling is drawn without looking at the needle, so
no document is about the needle's subject as a whole; modules give either needles or filling, never both, so that the
twin of a needle does not stand in another document; and every document has filling of its own, because with one filling
for all it would cancel out, and pooled vectors would rank as if there were nothing but needles.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator

from retbench.corpora import stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.stdlib_suite import StdlibPair
from retbench.errors import UsageError, suggest_names

RULES_VERSION = 1  # raise it with every change below that changes a collection, so that no cache serves the old one
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
LENGTH_BY_NAME = {f"stdlib-long-{tokens}": tokens for tokens in LENGTHS}
CHARACTERS_PER_TOKEN = (
    3.2  # a token, about: tokenizers give 3.5 to 4.2 on these texts, so a document is a little below its name
)
DEPTHS = (0, 25, 50, 75, 100)
MAX_NEEDLES = 100
MAX_NEEDLES_PER_MODULE = 8
NEEDLE_CHARACTERS = range(100, 401)  # characters
SEPARATOR = "\n\n"


def compute_stamp() -> str:
    """Names the interpreter build and the rules; equal stamps mean equal collections."""
    return f"{stdlib_suite.compute_stamp()}-long-r{RULES_VERSION}"


def generate_collection(name: str) -> RawCollection:
    """The collection of one length; it has a split `test` and nothing to train on."""
    if name not in LENGTH_BY_NAME:
        raise UsageError(f"there is no generator called {name!r}", suggest_names(name, LENGTH_BY_NAME))
    room = round(LENGTH_BY_NAME[name] * CHARACTERS_PER_TOKEN)
    groups = stdlib_suite.build_text_groups()
    filling = [pair.document for group in groups for pair in group if not _is_needle_module(pair)]
    documents: list[TextRow] = []
    queries: list[TextRow] = []
    judged: list[Judgment] = []
    for number, pair in enumerate(_select_needles(groups)):
        depth = DEPTHS[number % len(DEPTHS)]
        identity = f"{pair.id}@{depth}"
        documents.append(TextRow(identity, "", _build_document(pair, depth, room, filling), pair.where))
        queries.append(TextRow(f"q:{identity}", "", pair.query, pair.where))
        judged.append(Judgment(f"q:{identity}", identity, 1, pair.where))
    return RawCollection(documents, queries, {"test": judged})


def _select_needles(groups: list[list[StdlibPair]]) -> list[StdlibPair]:
    """Pairs of the test split of stdlib-text that stand alone, in an order that a hash decides."""
    alone = [group[0] for group in groups if len(group) == 1 and stdlib_suite.assign_split(group) == "test"]
    wanted = [pair for pair in alone if _is_needle_module(pair) and len(pair.document) in NEEDLE_CHARACTERS]
    taken: Counter[str] = Counter()
    kept = []
    for pair in sorted(wanted, key=lambda pair: _hash_to_int(pair.id)):
        taken[_module_name(pair)] += 1
        if taken[_module_name(pair)] <= MAX_NEEDLES_PER_MODULE:
            kept.append(pair)
    return kept[:MAX_NEEDLES]


def _build_document(needle: StdlibPair, depth: int, room: int, filling: list[str]) -> str:
    """The needle with its filling before and after; the order of the filling is the needle's own, at every length."""
    draw = random.Random(_hash_to_int(needle.id))  # noqa: S311  # a seeded draw, not a secret
    order = draw.sample(filling, len(filling))
    before = round(max(0, room - len(needle.document)) * depth / 100)
    after = room - len(needle.document) - before
    parts = [_join_filling(order[::2], before), needle.document, _join_filling(order[1::2], after)]
    return SEPARATOR.join(filter(None, parts))


def _join_filling(passages: Iterable[str], room: int) -> str:
    """Passages until the room is used up; the last one ends at a space."""
    return SEPARATOR.join(_take_filling(passages, room))


def _take_filling(passages: Iterable[str], room: int) -> Iterator[str]:
    for passage in passages:
        room -= len(SEPARATOR)
        if len(passage) > room:
            if rest := passage[: max(0, room)].rpartition(" ")[0].strip():
                yield rest
            return
        yield passage
        room -= len(passage)


def _is_needle_module(pair: StdlibPair) -> bool:
    return _hash_to_int(_module_name(pair)) % 2 == 0


def _module_name(pair: StdlibPair) -> str:
    """The top-level module of a pair."""
    return pair.where.partition("/")[0].removesuffix(".py")


def _hash_to_int(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
