"""The embedded suite `stdlib-long`: find one passage in a long document, at six lengths, from the standard library.

A document is a sequence of unrelated docstring bodies. One of them, the needle, is relevant to a query: its own summary
line. The needle is at one of five depths, from the beginning to the end. The document of the next length has the same
needle at the same depth, with more of the same filling, so the scores of a query at two lengths differ by length alone.

Three rules prevent shortcuts. Filling is drawn independently of the needle, so no document as a whole is about the
needle's subject. A module gives either needles or filling, so no near-duplicate of a needle is elsewhere. Each
document has different filling: common filling would cancel out, and pooled vectors would rank by the needles alone.

The split `train` is a collection of its own, with other needles of the same modules. Its documents have filling from
the same passages as those of the split `test`, in other orders.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator

from retbench.corpora import stdlib_suite
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.stdlib_suite import StdlibPair
from retbench.errors import UsageError, suggest_names

RULES_VERSION = 1  # increase it with every change below that changes a collection, so that caches are rebuilt
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
LENGTH_BY_NAME = {f"stdlib-long-{tokens}": tokens for tokens in LENGTHS}
CHARACTERS_PER_TOKEN = 3.2  # tokenizers give 3.5 to 4.2 on these texts, so a document is a little shorter than its name
DEPTHS = (0, 25, 50, 75, 100)
MAX_NEEDLES = {"test": 100, "train": 2000}
MAX_NEEDLES_PER_MODULE = 8
NEEDLE_CHARACTERS = range(100, 401)  # characters
SEPARATOR = "\n\n"


def compute_stamp() -> str:
    """Compute a name of the interpreter build and the rules; equal stamps mean equal collections."""
    return f"{stdlib_suite.compute_stamp()}-long-r{RULES_VERSION}"


def generate_collection(name: str, split: str = "test") -> RawCollection:
    """Generate one split of the collection of one length."""
    if name not in LENGTH_BY_NAME:
        raise UsageError(f"there is no generator called {name!r}", suggest_names(name, LENGTH_BY_NAME))
    if split not in MAX_NEEDLES:
        raise UsageError(f"{name} has no split {split!r}", f"its splits are {', '.join(MAX_NEEDLES)}")
    size = round(LENGTH_BY_NAME[name] * CHARACTERS_PER_TOKEN)
    groups = stdlib_suite.build_text_groups()
    filling = [pair.document for group in groups for pair in group if not _is_needle_module(pair)]
    documents: list[TextRow] = []
    queries: list[TextRow] = []
    judgments: list[Judgment] = []
    for number, pair in enumerate(_select_needles(groups, split)):
        depth = DEPTHS[number % len(DEPTHS)]
        identity = f"{pair.id}@{depth}"
        documents.append(TextRow(identity, "", _build_document(pair, depth, size, filling), pair.where))
        queries.append(TextRow(f"q:{identity}", "", pair.query, pair.where))
        judgments.append(Judgment(f"q:{identity}", identity, 1, pair.where))
    return RawCollection(documents, queries, {split: judgments})


def _select_needles(groups: list[list[StdlibPair]], split: str) -> list[StdlibPair]:
    """Select ungrouped pairs of a split of stdlib-text, in the order of a hash; for the test few of each module."""
    ungrouped = [group[0] for group in groups if len(group) == 1 and stdlib_suite.assign_split(group) == split]
    candidates = [pair for pair in ungrouped if _is_needle_module(pair) and len(pair.document) in NEEDLE_CHARACTERS]
    count_by_module: Counter[str] = Counter()
    needles = []
    for pair in sorted(candidates, key=lambda pair: _hash_to_int(pair.id)):
        count_by_module[_get_module_name(pair)] += 1
        if split == "train" or count_by_module[_get_module_name(pair)] <= MAX_NEEDLES_PER_MODULE:
            needles.append(pair)
    return needles[: MAX_NEEDLES[split]]


def _build_document(needle: StdlibPair, depth: int, size: int, filling: list[str]) -> str:
    """Place the needle between filling; each needle has its own order of filling, the same at every length."""
    generator = random.Random(_hash_to_int(needle.id))  # noqa: S311  # a seeded sample, not a secret
    order = generator.sample(filling, len(filling))
    before = round(max(0, size - len(needle.document)) * depth / 100)
    after = size - len(needle.document) - before
    parts = [_join_filling(order[::2], before), needle.document, _join_filling(order[1::2], after)]
    return SEPARATOR.join(filter(None, parts))


def _join_filling(passages: Iterable[str], size: int) -> str:
    """Join passages up to `size` characters; the last one is cut at a space."""
    return SEPARATOR.join(_take_filling(passages, size))


def _take_filling(passages: Iterable[str], size: int) -> Iterator[str]:
    for passage in passages:
        size -= len(SEPARATOR)
        if len(passage) > size:
            if rest := passage[: max(0, size)].rpartition(" ")[0].strip():
                yield rest
            return
        yield passage
        size -= len(passage)


def _is_needle_module(pair: StdlibPair) -> bool:
    return _hash_to_int(_get_module_name(pair)) % 2 == 0


def _get_module_name(pair: StdlibPair) -> str:
    """Return the top-level module of a pair."""
    return pair.where.partition("/")[0].removesuffix(".py")


def _hash_to_int(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
