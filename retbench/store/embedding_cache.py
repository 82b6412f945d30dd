"""The embedding cache: its shard stores, their size on disk and the cells that use them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from filelock import FileLock, Timeout

from retbench.store.shard_store import LOCK, USED_BY, ShardStore
from retbench.store.vector_formats import VectorDtype
from retbench.system.user_config import encode_path_part, get_cache_folder


class CachedEmbeddings(NamedTuple):
    """One cached store as `retbench cache list` shows it."""

    folder: Path
    model: str
    bytes: int
    rows: int | None
    finished: bool
    used_by: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object `--json` prints."""
        facts = self._asdict()
        return {"model": facts.pop("model"), "key": facts.pop("folder").name, **facts}


def open_store(model: str, key: str, vector_dtype: VectorDtype = "fp32") -> ShardStore:
    """The shard store for the vectors of one key."""
    return ShardStore(get_cache_folder() / "embeddings" / encode_path_part(model) / key[:32], vector_dtype)


def list_cached_embeddings() -> list[CachedEmbeddings]:
    """All stores, largest first."""
    return sorted(_find_cached_embeddings(), key=lambda stored: (-stored.bytes, stored.folder))


def _find_cached_embeddings() -> Iterator[CachedEmbeddings]:
    for folder in (get_cache_folder() / "embeddings").glob("*/*/"):
        store, users = ShardStore(folder), folder / USED_BY
        yield CachedEmbeddings(
            folder,
            unquote(folder.parent.name),
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            store.load_or_create_plan(dict).get("rows") if store.has_plan() else None,
            store.is_complete(),
            tuple(sorted(unquote(file.name) for file in users.iterdir())) if users.is_dir() else (),
        )


def remove_embeddings(embeddings: CachedEmbeddings) -> bool:
    """Delete a store. Returns False, and keeps it, when another process holds its lock."""
    try:
        with FileLock(embeddings.folder / LOCK, timeout=0):
            shutil.rmtree(embeddings.folder)
    except Timeout:
        return False
    if not any(embeddings.folder.parent.iterdir()):
        embeddings.folder.parent.rmdir()
    return True
