"""The shelf: every store of embeddings in the cache, what it costs on disk and which cells use it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from filelock import FileLock, Timeout

from retbench.cards.user_config import cache_folder, encode_path_part
from retbench.store.shard_store import LOCK, USERS, Store
from retbench.store.vector_formats import VectorDtype


class Stored(NamedTuple):
    """One store as `retbench cache list` shows it."""

    folder: Path
    model: str
    bytes: int
    rows: int | None
    finished: bool
    used_by: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """The object `--json` prints."""
        facts = self._asdict()
        return {"model": facts.pop("model"), "key": facts.pop("folder").name, **facts}


def place(model: str, key: str, vector_dtype: VectorDtype = "fp32") -> Store:
    """Where the vectors of one key lie."""
    return Store(cache_folder() / "embeddings" / encode_path_part(model) / key[:32], vector_dtype)


def shelf() -> list[Stored]:
    """Every store, the largest first."""
    return sorted(_stores(), key=lambda stored: (-stored.bytes, stored.folder))


def _stores() -> Iterator[Stored]:
    for folder in (cache_folder() / "embeddings").glob("*/*/"):
        store, users = Store(folder), folder / USERS
        yield Stored(
            folder,
            unquote(folder.parent.name),
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            store.plan(dict).get("rows") if store.planned() else None,
            store.complete(),
            tuple(sorted(unquote(file.name) for file in users.iterdir())) if users.is_dir() else (),
        )


def remove(stored: Stored) -> bool:
    """Take a store off the shelf; one that a process is working on stays."""
    try:
        with FileLock(stored.folder / LOCK, timeout=0):
            shutil.rmtree(stored.folder)
    except Timeout:
        return False
    if not any(stored.folder.parent.iterdir()):
        stored.folder.parent.rmdir()
    return True
