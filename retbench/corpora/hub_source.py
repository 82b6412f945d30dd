"""Dataset repositories of the Hugging Face hub, read by mteb's loader from a snapshot in the cache.

Published scores come from this loader, so it decides on columns, split and queries. It reads a local folder and needs
no network.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.replaced_queries import replace_queries
from retbench.corpora.rows import Exclusion, Judgment, RawCollection, TextRow
from retbench.errors import DataError, MissingError
from retbench.system.installation import suggest_extra
from retbench.system.user_config import encode_path_part, get_cache_folder

ROWS_PER_BATCH = 4096
IMAGES_PER_BATCH = 16
DOCUMENT_COLUMNS = ("docid", "title", "text")  # Tevatron's corpora


def build_hub_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `hub`."""
    source = card.source
    repo = require_source_field(card.name, "repo", source.repo)
    snapshot = DatasetSnapshot(repo, source.revision)
    key_parts = ("hub", repo, snapshot.revision, source.mteb, source.subset, card.published_split)
    own_source = DatasetSource(
        label=source.mteb or repo,
        compute_cache_key=lambda: "\n".join(map(str, key_parts)),
        origin=repo,
        is_available=snapshot.is_fetched,
        open_rows=lambda: open_hub_split(source, card.published_split, snapshot.folder),
        fetch=snapshot.fetch,
        revision=snapshot.revision,
        source_paths=(snapshot.folder,),
    )
    if source.corpus_repo is not None:
        own_source = _replace_corpus(own_source, DatasetSnapshot(source.corpus_repo, source.corpus_revision))
    return replace_queries(own_source, card)


def _replace_corpus(judged: DatasetSource, corpus: DatasetSnapshot) -> DatasetSource:
    """Take the documents from another repository; queries and judgments stay, so the document ids must be the same."""

    def fetch(log_status: StatusCallback) -> None:
        judged.fetch(log_status)
        corpus.fetch(log_status)

    @contextmanager
    def open_rows() -> Iterator[RawCollection]:
        with judged.open_rows() as rows:
            documents = _iterate_documents(load_hub_table(corpus, "train", DOCUMENT_COLUMNS))
            yield replace(rows, documents=documents)

    return DatasetSource(
        label=f"{judged.label}-{corpus.repo.rpartition('/')[2]}",
        compute_cache_key=lambda: "\n".join((judged.compute_cache_key(), corpus.repo, str(corpus.revision))),
        origin=f"{judged.origin} and {corpus.repo}",
        is_available=lambda: judged.is_available() and corpus.is_fetched(),
        open_rows=open_rows,
        fetch=fetch,
        revision=f"{judged.revision} {corpus.revision}" if judged.revision and corpus.revision else None,
        source_paths=(*judged.source_paths, corpus.folder),
    )


def load_hub_table(snapshot: DatasetSnapshot, split: str, columns: tuple[str, ...], config: str | None = None) -> Any:
    """Load one split of a downloaded repository that has no mteb loader, with these columns only."""
    import datasets

    cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / encode_path_part(
        snapshot.repo
    )  # in one cache two repositories would be confused
    try:
        table = datasets.load_dataset(str(snapshot.folder), config, split=split, cache_dir=str(cache_dir))
    except (ValueError, KeyError, OSError) as problem:
        raise build_read_error(snapshot.folder, "the library datasets", problem) from problem
    missing = set(columns) - set(table.column_names)
    if missing:
        columns_found = ", ".join(table.column_names)
        raise DataError(
            f"{snapshot.repo} has no column {', '.join(sorted(missing))} (it has {columns_found})",
            "its layout changed: give an older `revision` in the task's card",
        )
    return table.select_columns(list(columns))


def _iterate_documents(table: Any) -> Iterator[TextRow]:
    for batch in table.iter(batch_size=ROWS_PER_BATCH):
        for identifier, title, text in zip(batch["docid"], batch["title"], batch["text"], strict=True):
            yield TextRow(str(identifier), title or "", text or "", f"row {identifier!r}")


@contextmanager
def open_hub_split(source: SourceSpec, split: str, folder: Path) -> Iterator[RawCollection]:
    """Open one split of a downloaded repository with the loader of its mteb task, or with mteb's generic loader."""
    load = _load_with_task_loader if source.mteb else _load_with_generic_loader
    with use_temporary_arrow_cache():
        try:
            data = load(source, split, folder)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as problem:
            raise build_read_error(folder, f"mteb's loader {source.mteb or ''}".strip(), problem) from problem
        yield RawCollection(
            iterate_rows(data["corpus"]),
            iterate_rows(data["queries"]),
            {split: _iterate_judgments(data)},
            _iterate_exclusions(data),
            True,
        )


@contextmanager
def use_temporary_arrow_cache() -> Iterator[None]:
    """Let the library `datasets` use a temporary folder in the retbench cache, removed afterwards."""
    try:
        import datasets
    except ImportError as problem:
        raise MissingError("datasets from the hub need more packages", suggest_extra("hub")) from problem
    folder = get_cache_folder() / "collections" / f"reading.{uuid4().hex[:8]}.partial"
    previous_cache, progress_bars = datasets.config.HF_DATASETS_CACHE, datasets.is_progress_bar_enabled()
    datasets.config.HF_DATASETS_CACHE = folder
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = previous_cache
        if progress_bars:
            datasets.enable_progress_bars()
        shutil.rmtree(folder, ignore_errors=True)


def build_read_error(folder: Path, reader: str, problem: Exception) -> DataError:
    """Build the error for a snapshot that the reader cannot parse."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return DataError(f"{folder} could not be read by {reader}: {lines[0]}", "check `revision` in the task's card")


def _load_with_task_loader(source: SourceSpec, split: str, folder: Path) -> Any:
    import mteb

    subsets = [source.subset] if source.subset else None
    task: Any = mteb.get_task(str(source.mteb), eval_splits=[split], hf_subsets=subsets)
    dataset = {**task.metadata.dataset, "path": str(folder), "revision": None}
    task.metadata = task.metadata.model_copy(update={"dataset": dataset, "eval_splits": [split]})
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    return task.dataset[source.subset or "default"][split]


def _load_with_generic_loader(source: SourceSpec, split: str, folder: Path) -> Any:
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    return RetrievalDatasetLoader(str(folder), "", split=split, config=source.subset).load()


def iterate_rows(data: Any) -> Iterator[TextRow]:
    """Iterate over the rows of an mteb table: id, and title, text and image where it has them."""
    has_images = "image" in data.column_names
    for batch in (_leave_encoded(data) if has_images else data).iter(
        IMAGES_PER_BATCH if has_images else ROWS_PER_BATCH
    ):
        absent = [None] * len(batch["id"])
        columns = (batch.get(name) or absent for name in ("title", "text", "image"))
        for identifier, title, text, image in zip(batch["id"], *columns, strict=True):
            where = f"row {identifier!r}"
            yield TextRow(str(identifier), title or "", text or "", where, image and _read_encoded(image, where))


def _leave_encoded(data: Any) -> Any:
    """Return the table with images as the bytes of their files: decoding is ours, after a check of their size."""
    from datasets import Image

    return data.cast_column("image", Image(decode=False))


def _read_encoded(image: dict[str, Any], where: str) -> bytes:
    data: bytes | None = image.get("bytes")
    if data is None:
        raise DataError(
            f"{where}: its image is not in the table, but at {image.get('path')!r}",
            "use a revision of the dataset whose tables hold the images",
        )
    return data


def _iterate_judgments(data: Any) -> Iterator[Judgment]:
    for query, graded in data["relevant_docs"].items():
        for document, grade in graded.items():
            yield Judgment(str(query), str(document), int(grade))


def _iterate_exclusions(data: Any) -> Iterator[Exclusion]:
    """Exclude the documents that are not in mteb's list of documents to rank for a query."""
    allowed = data["top_ranked"] or {}
    all_documents = {str(identifier) for identifier in data["corpus"]["id"]} if allowed else set()
    for query, documents in allowed.items():
        for document in all_documents.difference(documents) if len(documents) < len(all_documents) else ():
            yield Exclusion(str(query), document)
