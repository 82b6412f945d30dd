"""A collection as the pipelines see it: corpus, the judged queries of one split, judgments, fingerprints."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.corpora.collection_cache import read_manifest
from retbench.corpora.texts import Texts
from retbench.errors import DataError, UsageError, suggest_names

SAMPLE_SEED = 13
DOCUMENTS_PER_QUERY = 20


@dataclass(frozen=True)
class Collection:
    """Everything one split needs. `judgments` maps query id to document id to grade.

    `excluded` maps query id to the documents that must not be ranked for it; it is empty unless the task card asks
    for that rule.
    """

    corpus: Texts
    queries: Texts
    judgments: dict[str, dict[str, int]]
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of corpus, queries and judgments (and exclusions): scores compare only where it is equal."""
        parts = [self.corpus.fingerprint, self.queries.fingerprint, json.dumps(self.judgments, sort_keys=True)]
        if self.excluded:
            parts.append(json.dumps({query: sorted(ids) for query, ids in sorted(self.excluded.items())}))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def max_excluded(self) -> int:
        """How many places of a ranking excluded documents could take."""
        return max(map(len, self.excluded.values()), default=0)

    def sample(self, size: int) -> "Collection":
        """`size` queries, every document they judge, and seeded distractors up to 20 documents a query."""
        if size >= len(self.queries):
            return self
        draw = random.Random(SAMPLE_SEED)  # noqa: S311  # a seeded draw, not a secret
        queries = self.queries.take(sorted(draw.sample(range(len(self.queries)), size)))
        judgments = {row.id: self.judgments[row.id] for row in queries}
        kept = _mark_rows(self.corpus, {document for grades in judgments.values() for document in grades})
        others = np.flatnonzero(~kept)
        wanted = max(0, min(len(others), size * DOCUMENTS_PER_QUERY - int(kept.sum())))
        kept[others[draw.sample(range(len(others)), wanted)]] = True
        excluded = {query: ids for query, ids in self.excluded.items() if query in judgments}
        return Collection(self.corpus.take(np.flatnonzero(kept)), queries, judgments, excluded)


def _mark_rows(texts: Texts, ids: set[str]) -> np.ndarray:
    """For every row, whether its id is one of these."""
    found: np.ndarray = pc.is_in(texts.ids(), value_set=pa.array(ids, pa.string())).to_numpy()
    return found


def load_collection(folder: Path, split: str, excluded: bool = False) -> Collection:
    """Open a compiled collection at one split; only its judged queries are kept, in the file's order."""
    manifest = read_manifest(folder)
    if split not in manifest["splits"]:
        raise UsageError(f"the collection has no split {split!r}", suggest_names(split, manifest["splits"]))
    judgments: dict[str, dict[str, int]] = {}
    for query, document, grade in _read_table(folder, manifest["splits"][split]):
        judgments.setdefault(query, {})[document] = grade
    if not judgments:
        raise DataError(f"the split {split!r} has no judgments", "name another split, or mend the source's qrels")
    queries = Texts.open(folder / "queries.arrow", manifest["queries"]["fingerprint"])
    judged = queries.take(np.flatnonzero(_mark_rows(queries, set(judgments))))
    ordered = {identifier: judgments[identifier] for identifier in judged.ids().to_pylist()}
    corpus = Texts.open(folder / "corpus.arrow", manifest["corpus"]["fingerprint"])
    return Collection(corpus, judged, ordered, _read_excluded(folder, manifest, ordered) if excluded else {})


def _read_table(folder: Path, entry: dict[str, Any]) -> list[tuple[Any, ...]]:
    table = pa.ipc.open_file(pa.memory_map(str(folder / entry["file"]))).read_all()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _read_excluded(folder: Path, manifest: dict[str, Any], queries: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for query, document in _read_table(folder, manifest["excluded"]) if manifest["excluded"] else ():
        if query in queries:
            found.setdefault(query, set()).add(document)
    return {query: frozenset(ids) for query, ids in found.items()}
