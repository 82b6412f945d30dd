"""The depot: shards on storage that many machines reach, a folder or an object store, through fsspec.

    <address>/embeddings/<model>/<key>/   the files of a store, under their own names
    <address>/results/...                 records, as in a results folder

A worker puts a finished shard there, its note last; whoever fetches it looks at the checksum in that note. So a copy
that was cut short does not count, and two workers that made the same shard do no harm.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retbench.errors import DataError, ResourceError
from retbench.store.shard_store import PLAN, Block, Store, write_whole
from retbench.store.vector_formats import VectorDtype


@dataclass(frozen=True)
class Depot:
    """One address."""

    address: str

    @cached_property
    def _system(self) -> tuple[Any, str]:
        import fsspec

        with self._reached():
            found: tuple[Any, str] = fsspec.core.url_to_fs(self.address)
        return found

    def shelf(self, store: Store) -> "DepotShelf":
        """The place of a store's files."""
        return DepotShelf(self, f"embeddings/{store.folder.parent.name}/{store.folder.name}", store.vector_dtype)

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        system, root = self._system
        place = f"{root}/{name}"
        with self._reached():
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
            system.pipe_file(place, content)

    def get(self, name: str) -> bytes | None:
        """A file's bytes; none where it is not there."""
        system, root = self._system
        with self._reached():
            try:
                content: bytes = system.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def keep(self, run: Path, results: Path) -> None:
        """Copy a finished run, its record last."""
        for file in sorted(filter(Path.is_file, run.iterdir()), key=lambda path: path.name == "record.json"):
            self.put(f"results/{run.relative_to(results).as_posix()}/{file.name}", file.read_bytes())

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError) as problem:
            raise ResourceError(
                f"{self.address} cannot be used: {problem}",
                "store= takes a folder or an fsspec address that every machine reaches; s3:// needs s3fs and its keys "
                "in the environment of each (docs/cluster.md)",
            ) from problem


@dataclass(frozen=True)
class DepotShelf:
    """The files of one store in a depot."""

    depot: Depot
    name: str
    vector_dtype: VectorDtype

    def share_plan(self, store: Store) -> None:
        """One plan for all: the depot's where this machine has none yet, else this machine's."""
        name = f"{self.name}/{PLAN}"
        there = json.loads(self.depot.get(name) or b"null")
        if not store.planned():
            if there:
                store.plan(lambda: there)
            return
        here = store.plan(dict)
        if there is None:
            self.depot.put(name, json.dumps(here, indent=1).encode())
        elif there != here:
            raise DataError(
                f"{self.depot.address} holds the same vectors under another plan",
                f"remove {store.folder} to go on with that plan, or give another store=",
            )

    def write(self, shard: int, block: Block, tokens: int, seconds: float, split_batches: int = 0) -> Block:
        """Store one finished shard, as a store does."""
        with TemporaryDirectory() as folder:
            store = Store(Path(folder), self.vector_dtype)
            kept = store.write(shard, block, tokens, seconds, split_batches)
            for file in store.files(shard):
                self.depot.put(f"{self.name}/{file.name}", file.read_bytes())
        return kept

    def bring(self, shard: int, store: Store) -> Block | None:
        """Copy a finished shard into the store; none where it is not there, or damaged."""
        for file in store.files(shard):
            content = self.depot.get(f"{self.name}/{file.name}")
            if content is None:
                return None
            write_whole(file, content)
        return store.read(shard)
