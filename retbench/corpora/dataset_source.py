"""The interface of a dataset source: its cache key, whether it is on disk, how it is fetched and read.

Each kind of source is a module with a function that builds a `DatasetSource` from a task card.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from retbench.corpora.rows import RawCollection
from retbench.errors import UsageError

StatusCallback = Callable[[str], None]


def skip_fetch(_: StatusCallback) -> None:
    """Do nothing: a local or generated source needs no download."""


@dataclass(frozen=True)
class DatasetSource:
    """One source of one task.

    `label` and `compute_cache_key` name the collection in the cache: cards with equal keys share it. `origin` and
    `revision` describe where it comes from. `open_rows` opens the raw rows; its temporary files (an unpacked archive,
    a library's cache) are removed when the context ends. `source_paths` are the fetched files on this disk.
    """

    label: str
    compute_cache_key: Callable[[], str]
    origin: str
    is_available: Callable[[], bool]
    open_rows: Callable[[], AbstractContextManager[RawCollection]]
    fetch: Callable[[StatusCallback], None] = skip_fetch
    revision: str | None = None
    source_paths: tuple[Path, ...] = ()


def require_source_field(card_name: str, field: str, value: str | None) -> str:
    """Return a required field of [source], or raise a UsageError."""
    if not value:
        raise UsageError(f"the card of {card_name} has no `{field}` in [source]", "add it to the card")
    return value
