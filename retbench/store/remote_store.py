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
from retbench.store.shard_store import PLAN, ShardStore, VectorBlock, write_file_atomically
from retbench.store.vector_formats import VectorDtype


@dataclass(frozen=True)
class RemoteStorage:
    """One address."""

    address: str

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        import fsspec

        with self._translate_errors():
            found: tuple[Any, str] = fsspec.core.url_to_fs(self.address)
        return found

    def open_shard_store(self, store: ShardStore) -> "RemoteShardStore":
        """The place of a store's files."""
        return RemoteShardStore(self, f"embeddings/{store.folder.parent.name}/{store.folder.name}", store.vector_dtype)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file."""
        system, root = self._filesystem
        place = f"{root}/{name}"
        with self._translate_errors():
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
            system.pipe_file(place, content)

    def read_file(self, name: str) -> bytes | None:
        """A file's bytes; none where it is not there."""
        system, root = self._filesystem
        with self._translate_errors():
            try:
                content: bytes = system.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def upload_run(self, run: Path, results: Path) -> None:
        """Copy a finished run, its record last."""
        for file in sorted(filter(Path.is_file, run.iterdir()), key=lambda path: path.name == "record.json"):
            self.write_file(f"results/{run.relative_to(results).as_posix()}/{file.name}", file.read_bytes())

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError) as problem:
            raise ResourceError(
                f"{self.address} cannot be used: {problem}",
                "store= takes a folder or an fsspec address that every machine reaches; s3:// needs s3fs and its keys "
                "in the environment of each (docs/cluster.md)",
            ) from problem


@dataclass(frozen=True)
class RemoteShardStore:
    """The files of one store in a depot."""

    storage: RemoteStorage
    name: str
    vector_dtype: VectorDtype

    def sync_plan(self, store: ShardStore) -> None:
        """One plan for all: the depot's where this machine has none yet, else this machine's."""
        name = f"{self.name}/{PLAN}"
        there = json.loads(self.storage.read_file(name) or b"null")
        if not store.has_plan():
            if there:
                store.load_or_create_plan(lambda: there)
            return
        here = store.load_or_create_plan(dict)
        if there is None:
            self.storage.write_file(name, json.dumps(here, indent=1).encode())
        elif there != here:
            raise DataError(
                f"{self.storage.address} holds the same vectors under another plan",
                f"remove {store.folder} to go on with that plan, or give another store=",
            )

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Store one finished shard, as a store does."""
        with TemporaryDirectory() as folder:
            store = ShardStore(Path(folder), self.vector_dtype)
            kept = store.write_shard(shard, block, tokens, seconds, split_batches)
            for file in store.get_shard_files(shard):
                self.storage.write_file(f"{self.name}/{file.name}", file.read_bytes())
        return kept

    def download_shard(self, shard: int, store: ShardStore) -> VectorBlock | None:
        """Copy a finished shard into the store; none where it is not there, or damaged."""
        for file in store.get_shard_files(shard):
            content = self.storage.read_file(f"{self.name}/{file.name}")
            if content is None:
                return None
            write_file_atomically(file, content)
        return store.read_shard(shard)
