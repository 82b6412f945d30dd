"""LoCoV1, which mteb does not include: documents in one repository, queries in another, each with all tasks.

Documents have the columns dataset, pid, passage; queries have dataset, qid, query, answer_pids. A task is the rows
whose `dataset` is the card's subset. A document is relevant to a query if the query lists it in answer_pids.

Some papers of Qasper have no text. As in the benchmark's own code, these documents are left out of the two tasks, and
so is the query of the same paper.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retbench.cards.task import TaskCard
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.hub_source import ROWS_PER_BATCH, load_hub_table, use_temporary_arrow_cache
from retbench.corpora.rows import Judgment, RawCollection, TextRow

DOCUMENT_COLUMNS = ("dataset", "pid", "passage")
QUERY_COLUMNS = ("dataset", "qid", "query", "answer_pids")
SUBSETS_WITH_MISSING_TEXTS = ("qasper_title", "qasper_abstract")


def build_loco_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `loco`."""
    source = card.source
    subset = require_source_field(card.name, "subset", source.subset)
    documents = DatasetSnapshot(require_source_field(card.name, "repo", source.repo), source.revision)
    queries = DatasetSnapshot(
        require_source_field(card.name, "queries_repo", source.queries_repo), source.queries_revision
    )

    def fetch(log_status: StatusCallback) -> None:
        documents.fetch(log_status)
        queries.fetch(log_status)

    rules = ("without missing texts",) if subset in SUBSETS_WITH_MISSING_TEXTS else ()
    key_parts = (
        "loco", documents.repo, documents.revision, queries.repo, queries.revision, subset,
        card.published_split, *rules,
    )  # fmt: skip
    return DatasetSource(
        label=f"loco-{subset}",
        compute_cache_key=lambda: "\n".join(map(str, key_parts)),
        origin=f"{documents.repo} and {queries.repo}",
        is_available=lambda: documents.is_fetched() and queries.is_fetched(),
        open_rows=lambda: _open_rows(documents, queries, subset, card.published_split),
        fetch=fetch,
        revision=f"{documents.revision} {queries.revision}" if documents.revision and queries.revision else None,
        source_paths=(documents.folder, queries.folder),
    )


@contextmanager
def _open_rows(
    documents: DatasetSnapshot, queries: DatasetSnapshot, subset: str, split: str
) -> Iterator[RawCollection]:
    with use_temporary_arrow_cache():
        document_table, query_table = (
            load_hub_table(documents, split, DOCUMENT_COLUMNS),
            load_hub_table(queries, split, QUERY_COLUMNS),
        )
        missing = _list_missing_texts(document_table, subset)
        yield RawCollection(
            _iterate_documents(document_table, subset, missing),
            _iterate_queries(query_table, subset, missing),
            {split: _iterate_judgments(query_table, subset, missing)},
            (),
            True,
        )


def _list_missing_texts(table: Any, subset: str) -> frozenset[str]:
    """The ids of documents without text, where the benchmark's code leaves them out."""
    if subset not in SUBSETS_WITH_MISSING_TEXTS:
        return frozenset()
    return frozenset(str(identifier) for identifier, passage in _iterate_subset(table, subset) if passage is None)


def _get_paper_id(query_id: Any) -> str:
    """The document of the same paper: `Query_3` and `Passage_3`."""
    return str(query_id).replace("Query", "Passage")


def _iterate_subset(table: Any, subset: str) -> Iterator[tuple[Any, ...]]:
    for batch in table.iter(batch_size=ROWS_PER_BATCH // 16):  # a passage may be a whole book
        for name, *row in zip(*batch.values(), strict=True):
            if name == subset:
                yield tuple(row)


def _iterate_documents(table: Any, subset: str, missing: frozenset[str]) -> Iterator[TextRow]:
    for identifier, passage in _iterate_subset(table, subset):
        if str(identifier) not in missing:
            yield TextRow(str(identifier), "", passage or "", f"row {identifier!r}")


def _iterate_queries(table: Any, subset: str, missing: frozenset[str]) -> Iterator[TextRow]:
    for identifier, query, _ in _iterate_subset(table, subset):
        if _get_paper_id(identifier) not in missing:
            yield TextRow(str(identifier), "", query or "", f"row {identifier!r}")


def _iterate_judgments(table: Any, subset: str, missing: frozenset[str]) -> Iterator[Judgment]:
    for identifier, _, answers in _iterate_subset(table, subset):
        for document in dict.fromkeys(map(str, answers)):
            if document not in missing and _get_paper_id(identifier) not in missing:
                yield Judgment(str(identifier), document, 1)
