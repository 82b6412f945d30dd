"""What runs and trainings have stored in the cache: embeddings, and the scores of cross-encoders, with their size."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from filelock import FileLock, Timeout

from retbench.store.pair_scores import PAIR_SCORES_FOLDER, PairScoreStore
from retbench.store.shard_store import LOCK, USED_BY, ShardStore
from retbench.system.user_config import get_cache_folder


class CachedStore(NamedTuple):
    """One store as `retbench cache list` shows it: a folder of embeddings, or a file of pair scores."""

    path: Path
    kind: Literal["embeddings", "pair scores"]
    model: str
    bytes: int
    rows: int | None  # texts, or pairs
    finished: bool
    used_by: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The digest of everything that the content follows from."""
        return self.path.stem

    def to_json(self) -> dict[str, Any]:
        """The object `--json` prints."""
        facts = self._asdict()
        facts.pop("path")
        return {"model": facts.pop("model"), "key": self.key, **facts}

    def remove(self) -> bool:
        """Delete the store. Returns False, and keeps it, while another process uses it."""
        is_removed = _remove_folder(self.path) if self.kind == "embeddings" else _remove_file(self.path)
        if is_removed and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
        return is_removed


def list_cached_stores() -> list[CachedStore]:
    """All stores, largest first."""
    stores = [*_find_embeddings(), *_find_pair_scores()]
    return sorted(stores, key=lambda stored: (-stored.bytes, stored.path))


def _find_embeddings() -> Iterator[CachedStore]:
    for folder in (get_cache_folder() / "embeddings").glob("*/*/"):
        store, users = ShardStore(folder), folder / USED_BY
        yield CachedStore(
            folder,
            "embeddings",
            unquote(folder.parent.name),
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            store.load_or_create_plan(dict).get("rows") if store.has_plan() else None,
            store.is_complete(),
            tuple(sorted(unquote(file.name) for file in users.iterdir())) if users.is_dir() else (),
        )


def _find_pair_scores() -> Iterator[CachedStore]:
    for file in (get_cache_folder() / PAIR_SCORES_FOLDER).glob("*/*.sqlite"):
        model = unquote(file.parent.name)
        yield CachedStore(file, "pair scores", model, file.stat().st_size, PairScoreStore(file).count_pairs(), True)


def _remove_folder(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        return False
    return True


def _remove_file(file: Path) -> bool:
    """Delete a file of SQLite, also a damaged one, unless another process is writing to it."""
    with closing(sqlite3.connect(file, timeout=0)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        except sqlite3.DatabaseError:
            pass  # damaged, so no process can use it
        file.unlink()
    return True
