"""Other queries for a collection of the hub: rewritten ones, or those of another test set over the same documents.

`queries_file` of `queries_repo` (parquet, with `id` and `query`) replaces the text of every query: BRIGHT's questions
as language models rewrote them. A file at `queries_url` (id and text, separated by a tab) with judgments at `url`
replaces queries and judgments: DL-Hard, over the passages of MS MARCO.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from retbench.cards.task import TaskCard
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.hub_files import HubFile
from retbench.corpora.judgments import read_judgments
from retbench.corpora.published_files import PublishedFile, find_published_file
from retbench.corpora.rows import RawCollection, TextRow
from retbench.corpora.tsv_folder import read_tsv_rows
from retbench.errors import DataError


def replace_queries(source: DatasetSource, card: TaskCard) -> DatasetSource:
    """Return a source with the queries that the card names; the source itself if it names none."""
    spec = card.source
    if spec.queries_file is not None:
        repo = require_source_field(card.name, "queries_repo", spec.queries_repo)
        rewritten = HubFile(repo, spec.queries_file, spec.queries_revision)
        return _combine(
            source, (rewritten,), lambda rows: _replace_texts(rows, rewritten.file), str(rewritten.revision)
        )
    if spec.queries_url is not None:
        checksum = require_source_field(card.name, "queries_sha256", spec.queries_sha256)
        queries = PublishedFile(spec.queries_url, "sha256", checksum, ".tsv")
        judgments = find_published_file(card, ".txt")
        split = card.published_split

        def replace_both(rows: RawCollection) -> RawCollection:
            return replace(rows, queries=read_tsv_rows(queries.file), splits={split: read_judgments(judgments.file)})

        return _combine(source, (queries, judgments), replace_both, f"{queries.checksum} {judgments.checksum}")
    return source


def _combine(
    source: DatasetSource,
    files: tuple[HubFile | PublishedFile, ...],
    change: Callable[[RawCollection], RawCollection],
    revision: str,
) -> DatasetSource:
    """Add files to a source, and what they change in its rows."""

    def fetch(log_status: StatusCallback) -> None:
        source.fetch(log_status)
        for file in files:
            file.fetch(log_status)

    @contextmanager
    def open_rows() -> Iterator[RawCollection]:
        with source.open_rows() as rows:
            yield change(rows)

    names = [file.name if isinstance(file, HubFile) else file.url for file in files]
    return replace(
        source,
        label=f"{source.label}-queries",
        compute_cache_key=lambda: "\n".join((source.compute_cache_key(), *names, revision)),
        origin=" and ".join((source.origin, *names)),
        is_available=lambda: source.is_available() and all(file.is_fetched() for file in files),
        open_rows=open_rows,
        fetch=fetch,
        revision=f"{source.revision} {revision}",
        source_paths=(*source.source_paths, *(file.file for file in files)),
    )


def _replace_texts(rows: RawCollection, file: Path) -> RawCollection:
    return replace(rows, queries=_rewrite(rows.queries, file))


def _rewrite(queries: Iterable[TextRow], file: Path) -> Iterator[TextRow]:
    """Give every query its text in the file; a query without one would be scored with the wrong text."""
    table = pq.read_table(file, columns=["id", "query"])
    texts = dict(zip(map(str, table["id"].to_pylist()), table["query"].to_pylist(), strict=True))
    for query in queries:
        if not texts.get(query.id):
            raise DataError(f"{file.name} has no text for query {query.id!r}", "check `queries_file` in the card")
        yield query._replace(text=texts[query.id])
