"""A training set: queries, the passages that answer them (positives) and those that do not (negatives).

It is built from a collection's split or from a jsonl file of the user's own.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.text_lines import read_lines
from retbench.corpora.texts import Texts, join_fields
from retbench.errors import DataError
from retbench.retrievers.ranking import get_excluded_ids
from retbench.system.text_parsers import parse_json

LINE_FORMAT = 'write lines like {"query": "...", "positives": ["..."], "negatives": ["..."]}'


@dataclass(frozen=True)
class TrainingQuery:
    """A query and the rows of its passages.

    `scores` are a teacher's, for the positives and then the negatives. A query of a collection has its `id` and the
    `grades` of its judged passages, as (row, grade). `source` is the part of a mixed set that it comes from, and
    `listed` are its passages in the order of the data, where that differs from the teacher's.
    """

    text: str
    positives: tuple[int, ...]
    negatives: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    id: str = ""
    grades: tuple[tuple[int, int], ...] = ()
    source: str = ""
    listed: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingSet:
    """`facts` go on the model card; `fingerprint` follows the content; `passage_ids` are those of a collection.

    `get_unranked_ids` gives the passages that the task never ranks for a query, such as the query's own text in
    ArguAna. They are no negatives: they would teach the model that a text is far from itself.
    """

    name: str
    queries: list[TrainingQuery]
    passages: Sequence[str]
    fingerprint: str
    facts: dict[str, Any] = field(default_factory=dict)
    passage_ids: Sequence[str] | None = None
    get_unranked_ids: Callable[[str], frozenset[str]] = lambda _: frozenset()

    def with_queries(self, queries: list[TrainingQuery], **facts: Any) -> "TrainingSet":
        """The same set with other queries and more facts."""
        if not queries:
            raise DataError(f"{self.name}: no training pair is left", "use another set, or fewer filters")
        return replace(self, queries=queries, facts={**self.facts, **facts})

    def describe(self, pairs: int) -> dict[str, Any]:
        """The data of a training, as the plan and the model card store it."""
        return {"set": self.name, "fingerprint": self.fingerprint, "pairs": pairs, **self.facts}


@dataclass(frozen=True)
class JoinedTexts(Sequence[str]):
    """A corpus as the texts a model reads, joined from their fields when they are needed."""

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
    """The judged queries of one split; queries without a relevant document are left out and counted."""
    ids: list[str] = collection.corpus.read_ids().to_pylist()
    rows = {identifier: row for row, identifier in enumerate(ids)}
    get_unranked_ids = partial(get_excluded_ids, collection, drop_same_id=card.same_id == "drop")
    queries, missing = [], 0
    for query in collection.queries:
        judgments = collection.judgments[query.id]
        unranked = get_unranked_ids(query.id)
        grades = tuple(
            (rows[document], grade)
            for document, grade in judgments.items()
            if document in rows and document not in unranked
        )
        missing += sum(grade >= card.relevant_from and document not in rows for document, grade in judgments.items())
        positives = tuple(row for row, grade in grades if grade >= card.relevant_from)
        negatives = tuple(row for row, grade in grades if grade < card.relevant_from)
        if positives:
            queries.append(TrainingQuery(query.text.strip(), positives, negatives, id=query.id, grades=grades))
    dropped = len(collection.queries) - len(queries)
    passages = JoinedTexts(collection.corpus, card.fields)
    empty_set = TrainingSet(
        card.name, [], passages, collection.fingerprint, passage_ids=ids, get_unranked_ids=get_unranked_ids
    )
    return empty_set.with_queries(
        queries, split=card.split, queries_without_positive=dropped, positives_missing=missing
    )


def read_training_file(path: Path) -> TrainingSet:
    """A jsonl file, plain or gzipped: ours, or Tevatron's `positive_passages` and `negative_passages`."""
    objects = ((where, _parse_object(where, line)) for line, where in read_lines(path))
    return parse_training_rows(name_training_file(path), objects)


def name_training_file(path: Path) -> str:
    """The name of the set in a file."""
    return path.name.split(".")[0].lower()


def _parse_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as problem:
        raise DataError(f"{where}: not JSON: {problem}", LINE_FORMAT) from problem
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object", LINE_FORMAT)
    return row


def parse_training_rows(name: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> TrainingSet:
    """A training set from the objects of a file or of the hub; equal passages are stored once."""
    passages: dict[str, int] = {}
    digest, queries = hashlib.sha256(), []
    for where, row in map(_convert_ranking, rows):
        positives, negatives = _get_texts(where, row, "positive"), _get_texts(where, row, "negative")
        text = row.get("query")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the query is empty", LINE_FORMAT)
        if not positives:
            raise DataError(f"{where}: the query has no positive passage", "add one, or remove the line")
        passage_rows = [[passages.setdefault(t, len(passages)) for t in texts] for texts in (positives, negatives)]
        scores = _get_scores(where, row, sum(map(len, passage_rows)))
        listed = tuple(passages[passage.strip()] for passage in row.get("listed", ()))
        source = str(row.get("source") or "")
        queries.append(
            TrainingQuery(
                text.strip(), tuple(passage_rows[0]), tuple(passage_rows[1]), scores, source=source, listed=listed
            )
        )
        order = [source, row["listed"]] if listed else []
        content = json.dumps([text, positives, negatives, row.get("scores"), *order], ensure_ascii=False)
        digest.update(_encode_text(where, content))
    return TrainingSet(name, [], list(passages), digest.hexdigest()).with_queries(queries)


def _convert_ranking(entry: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """E2Rank's form, `document` (a list) and `ranking` (numbers from 1, best first), as positive, negatives, scores.

    The order of the list is kept too, because E2Rank's prompts have it.
    """
    where, row = entry
    if "ranking" not in row:
        return where, {key: value for key, value in row.items() if key != "listed"}
    documents, ranking = row.get("document"), row["ranking"]
    if not isinstance(documents, list) or not isinstance(ranking, list) or not _is_permutation(ranking, len(documents)):
        raise DataError(
            f"{where}: `ranking` does not rank every document once", "write each number from 1 to the last exactly once"
        )
    ordered = [documents[int(number) - 1] for number in ranking]
    scores = [-float(rank) for rank in range(len(ordered))]
    ranked = {"positives": ordered[:1], "negatives": ordered[1:], "scores": scores, "listed": documents}
    return where, {"query": row.get("query"), "source": row.get("source"), **ranked}


def _is_permutation(ranking: list[Any], count: int) -> bool:
    return sorted(map(str, ranking)) == sorted(map(str, range(1, count + 1)))


def _get_texts(where: str, row: dict[str, Any], side: str) -> list[str]:
    passages = row.get(f"{side}s", row.get(f"{side}_passages", []))
    if not isinstance(passages, list):
        raise DataError(f"{where}: {side}s is not a list", LINE_FORMAT)
    texts = [f"{p.get('title') or ''} {p.get('text', '')}" if isinstance(p, dict) else p for p in passages]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: a {side} passage is empty or not a text", LINE_FORMAT)
    return [text.strip() for text in texts]


def _encode_text(where: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        raise DataError(f"{where}: incomplete surrogate pair", "correct its \\u escapes") from problem


def _get_scores(where: str, row: dict[str, Any], passages: int) -> tuple[float, ...] | None:
    if row.get("scores") is None:
        return None
    try:
        scores = tuple(map(float, row["scores"]))
    except (TypeError, ValueError, OverflowError) as problem:
        raise DataError(f"{where}: scores is not a list of numbers", LINE_FORMAT) from problem
    if not all(map(math.isfinite, scores)):
        raise DataError(f"{where}: a score is NaN or infinite", "give finite scores, or remove the line")
    if len(scores) != passages:
        raise DataError(f"{where}: {len(scores)} scores for {passages} passages", "give one score for each passage")
    return scores
