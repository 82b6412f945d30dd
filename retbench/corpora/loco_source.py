"""LoCoV1, which mteb does not have: documents in one repository, queries in a second, all tasks mixed in each.

Documents have the columns dataset, pid, passage; queries have dataset, qid, query, answer_pids. A task is the rows
whose `dataset` is the card's subset, and a document is relevant when a query names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retbench.cards.task import TaskCard
from retbench.cards.user_config import path_part
from retbench.corpora.dataset_source import Say, Supply, needed
from retbench.corpora.hub_snapshots import Snapshot
from retbench.corpora.hub_source import BATCH, arrow_cache, unreadable
from retbench.corpora.rows import Judgment, Raw, Row
from retbench.errors import DataError

DOCUMENTS = ("dataset", "pid", "passage")
QUERIES = ("dataset", "qid", "query", "answer_pids")


def supply(card: TaskCard) -> Supply:
    """The supply of a card of kind `loco`."""
    source = card.source
    subset = needed(card.name, "subset", source.subset)
    documents = Snapshot(needed(card.name, "repo", source.repo), source.revision)
    queries = Snapshot(needed(card.name, "queries_repo", source.queries_repo), source.queries_revision)

    def fetch(say: Say) -> None:
        documents.fetch(say)
        queries.fetch(say)

    facts = ("loco", documents.repo, documents.revision, queries.repo, queries.revision, subset, card.split)
    return Supply(
        label=f"loco-{subset}",
        stamp=lambda: "\n".join(map(str, facts)),
        origin=f"{documents.repo} and {queries.repo}",
        here=lambda: documents.here() and queries.here(),
        read=lambda: _reading(documents, queries, subset, card.split),
        fetch=fetch,
        revision=f"{documents.revision} {queries.revision}" if documents.revision and queries.revision else None,
        kept=(documents.folder, queries.folder),
    )


@contextmanager
def _reading(documents: Snapshot, queries: Snapshot, subset: str, split: str) -> Iterator[Raw]:
    with arrow_cache():
        corpus, asked = _table(documents, split, DOCUMENTS), _table(queries, split, QUERIES)
        yield Raw(_documents(corpus, subset), _queries(asked, subset), {split: _judgments(asked, subset)}, (), True)


def _table(snapshot: Snapshot, split: str, columns: tuple[str, ...]) -> Any:
    import datasets

    own = Path(datasets.config.HF_DATASETS_CACHE) / path_part(snapshot.repo)  # one cache would mix up the two
    try:
        table = datasets.load_dataset(str(snapshot.folder), split=split, cache_dir=str(own))
    except (ValueError, KeyError, OSError) as problem:
        raise unreadable(snapshot.folder, "the library datasets", problem) from problem
    missing = set(columns) - set(table.column_names)
    if missing:
        found = ", ".join(table.column_names)
        raise DataError(
            f"{snapshot.repo} has no column {', '.join(sorted(missing))} (it has {found})",
            "its layout changed: name an older `revision` in the task's card",
        )
    return table.select_columns(list(columns))


def _of(table: Any, subset: str) -> Iterator[tuple[Any, ...]]:
    for batch in table.iter(batch_size=BATCH // 16):  # a passage may be a whole book
        for name, *row in zip(*batch.values(), strict=True):
            if name == subset:
                yield tuple(row)


def _documents(table: Any, subset: str) -> Iterator[Row]:
    for identifier, passage in _of(table, subset):
        yield Row(str(identifier), "", passage or "", f"row {identifier!r}")


def _queries(table: Any, subset: str) -> Iterator[Row]:
    for identifier, query, _ in _of(table, subset):
        yield Row(str(identifier), "", query or "", f"row {identifier!r}")


def _judgments(table: Any, subset: str) -> Iterator[Judgment]:
    for identifier, _, answers in _of(table, subset):
        for document in dict.fromkeys(answers):
            yield Judgment(str(identifier), str(document), 1)
