"""The texts that the HTML page shows beside the scores of single queries, where the collection's licence allows it.

A page is a file that people send to others, so it holds texts only if the task card names a licence under which
anybody may pass them on. The texts come from the collection cache; nothing is fetched or compiled for a page. Where
there are no texts, the page says why.
"""

import json
from collections.abc import Iterable
from typing import Any

from retbench.cards import catalog
from retbench.cards.licenses import is_redistributable
from retbench.corpora.collection import Collection
from retbench.corpora.text_excerpts import SHOWN_CHARACTERS, find_rows, shorten_text
from retbench.corpora.texts import describe_row
from retbench.corpora.thumbnails import collect_thumbnails
from retbench.errors import RetbenchError
from retbench.records.load_run import find_recorded_collection
from retbench.records.record import Record
from retbench.records.scored_run import ScoredRun

MAX_BYTES = 2_000_000  # of the texts of a page
MAX_IMAGES, MAX_IMAGE_BYTES = 400, 2_000_000  # of the small copies of images

Rankings = list[list[str]]  # the first documents of each query


class TextCollector:
    """Collects the texts of a page, task by task, up to its limit."""

    def __init__(self) -> None:
        self.bytes_left = MAX_BYTES
        self.images_left, self.image_bytes_left = MAX_IMAGES, MAX_IMAGE_BYTES

    def collect(self, run: ScoredRun, rankings: Iterable[Rankings]) -> dict[str, Any]:
        """Return the texts of a run's queries and of the listed documents, and a note about them.

        `relevant` has the judged documents among the listed ones, by query.
        """
        license_name = _find_license(run.record)
        if obstacle := _describe_license_problem(run.record.task, license_name):
            return {"note": f"No texts: {obstacle}."}
        try:
            collection = find_recorded_collection(run.record)
        except RetbenchError as problem:  # a damaged cache must not end a report
            return {"note": f"No texts: {problem.cause}."}
        if collection is None:
            return {"note": "No texts: the collection was not in the cache of the machine that wrote this page."}
        listed = _list_documents(list(rankings), len(run.queries))
        texts = _read_texts(collection, run.queries, listed)
        size = len(json.dumps(texts, ensure_ascii=False).encode())
        if size > self.bytes_left:
            return {"note": f"No texts: a page holds at most {MAX_BYTES / 1e6:g} MB of them."}
        self.bytes_left -= size
        note = f"Texts: the first {SHOWN_CHARACTERS} characters, from {run.record.task}, licence {license_name}."
        if not collection.has_images:
            return {**texts, "note": note}
        images = self._collect_images(collection, run.queries, listed)
        return {**texts, **images, "note": f"{note} Images: small copies of the first {len(images['images']):,}."}

    def _collect_images(
        self, collection: Collection, queries: tuple[str, ...], listed: list[set[str]]
    ) -> dict[str, dict[str, str]]:
        """Return small copies of the images of queries and listed documents, in the order of the queries."""
        images: dict[str, dict[str, str]] = {}
        in_order = dict.fromkeys(name for documents in listed for name in sorted(documents))
        for part, texts, names in (
            ("query_images", collection.queries, queries), ("images", collection.corpus, in_order),
        ):  # fmt: skip
            rows = find_rows(texts, names)
            found = ((name, rows[name]) for name in names if name in rows)
            images[part] = collect_thumbnails(texts, found, self.images_left, self.image_bytes_left)
            self.images_left -= len(images[part])
            self.image_bytes_left -= sum(map(len, images[part].values()))
        return images


def _find_license(record: Record) -> str | None:
    """Find the licence of a task by its card of today, else by the card in the record."""
    if record.task in catalog.load_task_cards():
        return catalog.find_task_card(record.task).license
    license_name: str | None = record.cards["task"].get("license")
    return license_name


def _describe_license_problem(task: str, license_name: str | None) -> str | None:
    if not license_name:
        return f"the card of {task} names no licence, so they may not be ours to pass on"
    if not is_redistributable(license_name):
        return f"the licence of {task}, {license_name}, does not let everybody pass them on"
    return None


def _list_documents(rankings: list[Rankings], queries: int) -> list[set[str]]:
    """Return the documents that any run lists for each query."""
    return [{document for ranking in rankings if ranking for document in ranking[row]} for row in range(queries)]


def _read_texts(collection: Collection, queries: tuple[str, ...], listed: list[set[str]]) -> dict[str, Any]:
    query_rows = find_rows(collection.queries, queries)
    document_rows = find_rows(collection.corpus, set().union(*listed))
    return {
        "texts": [
            shorten_text(describe_row(collection.queries, query_rows[query], ("text",))) if query in query_rows else ""
            for query in queries
        ],
        "passages": {
            name: shorten_text(describe_row(collection.corpus, row)) for name, row in sorted(document_rows.items())
        },
        "relevant": [
            [name for name, grade in collection.judgments.get(query, {}).items() if grade > 0 and name in documents]
            for query, documents in zip(queries, listed, strict=True)
        ],
    }
