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
from retbench.corpora.rows import Judgment, Raw, Row
from retbench.corpora.stdlib_suite import Pair
from retbench.errors import UsageError, closest

RULES = 1  # raise it with every change below that changes a collection, so that no cache serves the old one
TOKENS = (256, 512, 1024, 2048, 4096, 8192)
NAMES = {f"stdlib-long-{tokens}": tokens for tokens in TOKENS}
CHARACTERS = 3.2  # a token, about: tokenizers give 3.5 to 4.2 on these texts, so a document is a little below its name
DEPTHS = (0, 25, 50, 75, 100)
MOST_NEEDLES = 100
MOST_OF_A_MODULE = 8
NEEDLE = range(100, 401)  # characters
GAP = "\n\n"


def stamp() -> str:
    """Names the interpreter build and the rules; equal stamps mean equal collections."""
    return f"{stdlib_suite.stamp()}-long-r{RULES}"


def generate(name: str) -> Raw:
    """The collection of one length; it has a split `test` and nothing to train on."""
    if name not in NAMES:
        raise UsageError(f"there is no generator called {name!r}", closest(name, NAMES))
    room = round(NAMES[name] * CHARACTERS)
    groups = stdlib_suite.text_groups()
    filling = [pair.document for group in groups for pair in group if not _gives_needles(pair)]
    documents: list[Row] = []
    queries: list[Row] = []
    judged: list[Judgment] = []
    for number, pair in enumerate(_needles(groups)):
        depth = DEPTHS[number % len(DEPTHS)]
        identity = f"{pair.id}@{depth}"
        documents.append(Row(identity, "", _document(pair, depth, room, filling), pair.where))
        queries.append(Row(f"q:{identity}", "", pair.query, pair.where))
        judged.append(Judgment(f"q:{identity}", identity, 1, pair.where))
    return Raw(documents, queries, {"test": judged})


def _needles(groups: list[list[Pair]]) -> list[Pair]:
    """Pairs of the test split of stdlib-text that stand alone, in an order that a hash decides."""
    alone = [group[0] for group in groups if len(group) == 1 and stdlib_suite.split_of(group) == "test"]
    wanted = [pair for pair in alone if _gives_needles(pair) and len(pair.document) in NEEDLE]
    taken: Counter[str] = Counter()
    kept = []
    for pair in sorted(wanted, key=lambda pair: _number(pair.id)):
        taken[_module(pair)] += 1
        if taken[_module(pair)] <= MOST_OF_A_MODULE:
            kept.append(pair)
    return kept[:MOST_NEEDLES]


def _document(needle: Pair, depth: int, room: int, filling: list[str]) -> str:
    """The needle with its filling before and after; the order of the filling is the needle's own, at every length."""
    draw = random.Random(_number(needle.id))  # noqa: S311  # a seeded draw, not a secret
    order = draw.sample(filling, len(filling))
    before = round(max(0, room - len(needle.document)) * depth / 100)
    after = room - len(needle.document) - before
    parts = [_filled(order[::2], before), needle.document, _filled(order[1::2], after)]
    return GAP.join(filter(None, parts))


def _filled(passages: Iterable[str], room: int) -> str:
    """Passages until the room is used up; the last one ends at a space."""
    return GAP.join(_cut(passages, room))


def _cut(passages: Iterable[str], room: int) -> Iterator[str]:
    for passage in passages:
        room -= len(GAP)
        if len(passage) > room:
            if rest := passage[: max(0, room)].rpartition(" ")[0].strip():
                yield rest
            return
        yield passage
        room -= len(passage)


def _gives_needles(pair: Pair) -> bool:
    return _number(_module(pair)) % 2 == 0


def _module(pair: Pair) -> str:
    """The top-level module of a pair."""
    return pair.where.partition("/")[0].removesuffix(".py")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
