"""Corpora of the Hugging Face hub that have texts alone, for training without labels (llm2ir).

They are read from a verified snapshot in the cache, as the collections of the hub are.
"""

import hashlib
from dataclasses import dataclass

from retbench.corpora.dataset_source import StatusCallback
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.hub_source import ROWS_PER_BATCH, load_hub_table, use_temporary_arrow_cache
from retbench.errors import DataError, MissingError

NEXT_STEP = (
    "run it on a machine with access to huggingface.co, copy its cache here, or train on the documents of another task"
)


@dataclass(frozen=True)
class HubCorpus:
    """One column of one split of a dataset; every row that is not blank is a text."""

    repo: str
    revision: str
    config: str
    split: str
    column: str


HUB_CORPORA = {
    "wikitext-103": HubCorpus(
        "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-103-raw-v1", "train", "text"
    )
}


def find_snapshot(name: str) -> DatasetSnapshot:
    """The snapshot of a corpus, which may not be fetched yet."""
    return DatasetSnapshot(HUB_CORPORA[name].repo, HUB_CORPORA[name].revision)


def load_hub_corpus(name: str, log_status: StatusCallback) -> tuple[str, list[str]]:
    """The fingerprint and the texts of a corpus; it is fetched if it is not in the cache."""
    source, snapshot = HUB_CORPORA[name], find_snapshot(name)
    try:
        snapshot.fetch(log_status)
    except MissingError as error:
        raise MissingError(error.cause, NEXT_STEP) from error
    with use_temporary_arrow_cache():
        table = load_hub_table(snapshot, source.split, (source.column,), source.config)
        rows = (text.strip() for batch in table.iter(batch_size=ROWS_PER_BATCH) for text in batch[source.column])
        texts = [text for text in rows if text]
    if not texts:
        raise DataError(f"{source.repo}, split {source.split}, has no text", "remove its folder from the cache")
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest(), texts
