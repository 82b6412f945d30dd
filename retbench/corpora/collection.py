"""A collection ready for evaluation: corpus, judged queries of one split, judgments, fingerprint."""

import difflib
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.corpora.collection_cache import read_manifest
from retbench.corpora.texts import Texts
from retbench.errors import DataError, UsageError

SAMPLE_SEED = 13
HALVES = ("train", "test")  # of the queries of a split: `test/train` and `test/test`
DOCUMENTS_PER_QUERY = 20


@dataclass(frozen=True)
class Collection:
    """One split of a collection. `judgments` maps query id to document id to grade.

    `excluded` maps query id to the documents that must not be ranked for it; it is empty unless the task card sets
    `excluded = "drop"`. `candidates` maps query id to the documents and scores of a first stage, best first, if the
    collection is made of candidate lists.
    """

    corpus: Texts
    queries: Texts
    judgments: dict[str, dict[str, int]]
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    candidates: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of corpus, queries, judgments and exclusions; scores are comparable only where it is equal."""
        parts = [self.corpus.fingerprint, self.queries.fingerprint, json.dumps(self.judgments, sort_keys=True)]
        if self.excluded:
            parts.append(json.dumps({query: sorted(ids) for query, ids in sorted(self.excluded.items())}))
        if self.candidates:
            parts.append(json.dumps(dict(sorted(self.candidates.items()))))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def has_images(self) -> bool:
        """Whether a document or a query has an image."""
        return self.corpus.images is not None or self.queries.images is not None

    def drop_images(self) -> "Collection":
        """Return the collection without images. A query that was only an image has nothing left: an error."""
        queries = self.queries.drop_images()
        empty = next((row.id for row in queries if not row.text.strip()), None)
        if empty is not None and self.queries.images is not None:
            raise DataError(f"query {empty!r} is only an image", "use a model that reads images, and read the images")
        return replace(self, corpus=self.corpus.drop_images(), queries=queries)

    def prefer_images(self) -> "Collection":
        """Return the collection as a model reads it that sees images and, of a row with an image, nothing else."""
        return replace(self, corpus=self.corpus.prefer_images(), queries=self.queries.prefer_images())

    @property
    def max_excluded(self) -> int:
        """The largest number of excluded documents of any query."""
        return max(map(len, self.excluded.values()), default=0)

    def sample(self, size: int) -> "Collection":
        """Draw `size` queries, all their judged documents, and random distractors up to 20 documents per query."""
        if size >= len(self.queries):
            return self
        generator = random.Random(SAMPLE_SEED)  # noqa: S311  # a seeded sample, not a secret
        queries = self.queries.take(sorted(generator.sample(range(len(self.queries)), size)))
        judgments = {row.id: self.judgments[row.id] for row in queries}
        candidates = {query: listed for query, listed in self.candidates.items() if query in judgments}
        kept = {document for grades in judgments.values() for document in grades}
        kept |= {document for listed in candidates.values() for document, _ in listed}
        selected = _mark_rows(self.corpus, kept)
        others = np.flatnonzero(~selected)
        distractors = max(0, min(len(others), size * DOCUMENTS_PER_QUERY - int(selected.sum())))
        selected[others[generator.sample(range(len(others)), distractors)]] = True
        excluded = {query: ids for query, ids in self.excluded.items() if query in judgments}
        return Collection(self.corpus.take(np.flatnonzero(selected)), queries, judgments, excluded, candidates)


def _mark_rows(texts: Texts, ids: set[str]) -> np.ndarray:
    """Mark every row whose id is in `ids`."""
    mask: np.ndarray = pc.is_in(texts.read_ids(), value_set=pa.array(ids, pa.string())).to_numpy()
    return mask


def load_collection(folder: Path, split: str, excluded: bool = False) -> Collection:
    """Open one split of a compiled collection, or a half of one, with its judged queries in the file's order."""
    manifest = read_manifest(folder)
    split, slash, half = split.partition("/")
    if split not in manifest["splits"]:
        raise UsageError(
            f"the collection has no split {split!r}; it has {', '.join(manifest['splits'])}",
            f"give --set split={_suggest_split(split, list(manifest['splits']))}",
        )
    judgments: dict[str, dict[str, int]] = {}
    for query, document, grade in _read_table(folder, manifest["splits"][split]):
        judgments.setdefault(query, {})[document] = grade
    if not judgments:
        raise DataError(
            f"the split {split!r} has no judgments", "give another split, or correct the qrels of the source"
        )
    if slash:
        judgments = _select_half(judgments, split, half)
    queries = Texts.open(folder / "queries.arrow", manifest["queries"]["fingerprint"])
    judged = queries.take(np.flatnonzero(_mark_rows(queries, set(judgments))))
    ordered_judgments = {identifier: judgments[identifier] for identifier in judged.read_ids().to_pylist()}
    corpus = Texts.open(folder / "corpus.arrow", manifest["corpus"]["fingerprint"])
    return Collection(
        corpus, judged, ordered_judgments, _read_excluded(folder, manifest, ordered_judgments) if excluded else {},
        _read_candidates(folder, manifest, ordered_judgments),
    )  # fmt: skip


def _select_half(judgments: dict[str, dict[str, int]], split: str, half: str) -> dict[str, dict[str, int]]:
    """Select half of the queries, drawn from their sorted ids: the first half is to train on, the other to test on."""
    if half not in HALVES:
        raise UsageError(
            f"the split {split!r} has no half {half!r}", f"give {' or '.join(f'{split}/{name}' for name in HALVES)}"
        )
    if len(judgments) < len(HALVES):
        raise DataError(f"the split {split!r} has one query and cannot be halved", "use another task")
    ids = sorted(judgments)
    drawn = set(random.Random(SAMPLE_SEED).sample(ids, len(ids) // 2))  # noqa: S311  # a seeded split, not a secret
    return {query: grades for query, grades in judgments.items() if (query in drawn) == (half == HALVES[0])}


def _suggest_split(split: str, known: list[str]) -> str:
    """Return the split with the nearest name, else the first one, and `train` only if there is no other."""
    near = difflib.get_close_matches(split, known, n=1, cutoff=0.5)
    return (near or sorted(known, key=lambda name: name == "train"))[0]


def _read_table(folder: Path, entry: dict[str, Any]) -> list[tuple[Any, ...]]:
    table = pa.ipc.open_file(pa.memory_map(str(folder / entry["file"]))).read_all()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _read_excluded(folder: Path, manifest: dict[str, Any], queries: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    excluded: dict[str, set[str]] = {}
    for query, document in _read_table(folder, manifest["excluded"]) if manifest["excluded"] else ():
        if query in queries:
            excluded.setdefault(query, set()).add(document)
    return {query: frozenset(ids) for query, ids in excluded.items()}


def _read_candidates(
    folder: Path, manifest: dict[str, Any], queries: Mapping[str, Any]
) -> dict[str, tuple[tuple[str, float], ...]]:
    candidates: dict[str, list[tuple[str, float]]] = {}
    for query, document, score in _read_table(folder, manifest["candidates"]) if "candidates" in manifest else ():
        if query in queries:
            candidates.setdefault(query, []).append((document, score))
    return {query: tuple(listed) for query, listed in candidates.items()}
