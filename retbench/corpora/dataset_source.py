"""A supply is one source as the opening sees it: what names it, whether it lies here, how it is fetched and read.

Every kind of source is a function from a task card to a supply, in a module of its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from retbench.corpora.rows import RawCollection
from retbench.errors import UsageError

StatusCallback = Callable[[str], None]


def skip_fetch(_: StatusCallback) -> None:
    """What lies here, or is made here, needs no network."""


@dataclass(frozen=True)
class DatasetSource:
    """One source of one task.

    `label` and `stamp` name what would be read: equal stamps are one collection in the cache, whichever cards share
    it. `origin` and `revision` tell a reader where it comes from and at which state. `read` opens the raw rows, and
    what it needs meanwhile (an unpacked archive, a library's own cache) is gone when its context ends.
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
    """A field of [source] that this kind of source cannot do without."""
    if not value:
        raise UsageError(f"the card of {card_name} has no `{field}` in [source]", "add it to the card")
    return value
