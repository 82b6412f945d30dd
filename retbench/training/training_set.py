"""What is learned from: queries, the passages that answer them, and those that look as if they did.

A set comes from a collection's split or from a jsonl file of the user's own; both end as the same `TrainingSet`.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import Texts, join_fields
from retbench.errors import DataError

LINE_FORMAT = 'write lines like {"query": "...", "positives": ["..."], "negatives": ["..."]}'


@dataclass(frozen=True)
class TrainingQuery:
    """A query and the passage rows around it; `scores` are a teacher's, for positives and then negatives.

    A collection's query has its `id` and the `grades` of what was judged for it, by row.
    """

    text: str
    positives: tuple[int, ...]
    negatives: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    id: str = ""
    grades: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class TrainingSet:
    """`facts` are what the model card will say about it; `fingerprint` follows the content.

    `names` are the passages' ids in a collection.
    """

    name: str
    queries: list[TrainingQuery]
    passages: Sequence[str]
    fingerprint: str
    facts: dict[str, Any] = field(default_factory=dict)
    passage_ids: Sequence[str] | None = None

    def with_queries(self, queries: list[TrainingQuery], **facts: Any) -> "TrainingSet":
        """The same set with other queries, and what is to be said about them."""
        if not queries:
            raise DataError(f"{self.name}: no training pair is left", "use another set, or fewer filters")
        return replace(self, queries=queries, facts={**self.facts, **facts})


@dataclass(frozen=True)
class JoinedTexts(Sequence[str]):
    """A corpus as the texts a model reads, looked up when they are needed."""

    texts: Texts
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return join_fields(self.texts[row], self.fields)

    def __iter__(self) -> Iterator[str]:
        return (join_fields(row, self.fields) for row in self.texts)


def build_training_set(card: TaskCard, collection: Collection) -> TrainingSet:
    """The judged queries of one split; a query without a relevant document teaches nothing and is counted."""
    names: list[str] = collection.corpus.ids().to_pylist()
    rows = {identifier: row for row, identifier in enumerate(names)}
    queries, missing = [], 0
    for query in collection.queries:
        grades = collection.judgments[query.id]
        here = tuple((rows[d], grade) for d, grade in grades.items() if d in rows)
        missing += sum(grade >= card.relevant_from and d not in rows for d, grade in grades.items())
        found = tuple(row for row, grade in here if grade >= card.relevant_from)
        judged_wrong = tuple(row for row, grade in here if grade < card.relevant_from)
        if found:
            queries.append(TrainingQuery(query.text.strip(), found, judged_wrong, id=query.id, grades=here))
    lost = len(collection.queries) - len(queries)
    made = TrainingSet(
        card.name, [], JoinedTexts(collection.corpus, card.fields), collection.fingerprint, passage_ids=names
    )
    return made.with_queries(queries, split=card.split, queries_without_positive=lost, positives_missing=missing)


def read_training_file(path: Path) -> TrainingSet:
    """A jsonl file, plain or gzipped: ours, or Tevatron's `positive_passages` and `negative_passages`."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as lines:
        rows = ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())
        return parse_training_rows(
            path.name.split(".")[0].lower(), ((where, _parse_object(where, line)) for where, line in rows)
        )


def _parse_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as problem:
        raise DataError(f"{where}: not JSON: {problem}", LINE_FORMAT) from problem
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object", LINE_FORMAT)
    return row


def parse_training_rows(name: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> TrainingSet:
    """Objects as a file or the hub gives them; equal passages are stored once."""
    passages: dict[str, int] = {}
    digest, queries = hashlib.sha256(), []
    for where, row in map(_convert_ranking, rows):
        positives, negatives = _get_texts(where, row, "positive"), _get_texts(where, row, "negative")
        text = row.get("query")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the query is empty", LINE_FORMAT)
        if not positives:
            raise DataError(f"{where}: the query has no positive passage", "add one, or remove the line")
        found = [[passages.setdefault(t, len(passages)) for t in texts] for texts in (positives, negatives)]
        queries.append(TrainingQuery(text.strip(), tuple(found[0]), tuple(found[1]), _get_scores(where, row, found)))
        digest.update(json.dumps([text, positives, negatives, row.get("scores")], ensure_ascii=False).encode())
    made = TrainingSet(name, [], list(passages), digest.hexdigest())
    return made.with_queries(queries)


def _convert_ranking(entry: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """E2Rank's form, `document` (a list) and `ranking` (numbers from 1, best first), as positive, negatives, scores."""
    where, row = entry
    if "ranking" not in row:
        return entry
    documents, ranking = row.get("document"), row["ranking"]
    if not isinstance(documents, list) or not isinstance(ranking, list) or _is_invalid_ranking(ranking, len(documents)):
        raise DataError(f"{where}: the ranking is no order of the documents", "write every number from 1 once")
    ordered = [documents[int(number) - 1] for number in ranking]
    scores = [-float(place) for place in range(len(ordered))]
    return where, {"query": row.get("query"), "positives": ordered[:1], "negatives": ordered[1:], "scores": scores}


def _is_invalid_ranking(ranking: list[Any], count: int) -> bool:
    return sorted(map(str, ranking)) != sorted(map(str, range(1, count + 1)))


def _get_texts(where: str, row: dict[str, Any], side: str) -> list[str]:
    given = row.get(f"{side}s", row.get(f"{side}_passages", []))
    if not isinstance(given, list):
        raise DataError(f"{where}: {side}s is not a list", LINE_FORMAT)
    texts = [f"{p.get('title') or ''} {p.get('text', '')}" if isinstance(p, dict) else p for p in given]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: a {side} is empty or no text", LINE_FORMAT)
    return [text.strip() for text in texts]


def _get_scores(where: str, row: dict[str, Any], found: list[list[int]]) -> tuple[float, ...] | None:
    if row.get("scores") is None:
        return None
    scores = tuple(map(float, row["scores"]))
    if len(scores) != sum(map(len, found)):
        raise DataError(f"{where}: {len(scores)} scores for {sum(map(len, found))} passages", "give one a passage")
    return scores
