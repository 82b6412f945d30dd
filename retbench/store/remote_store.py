"""Shards on shared storage (a folder or an object store), read and written through fsspec.

    <address>/embeddings/<model>/<key>/   the files of a store, under their own names
    <address>/results/...                 records, as in a results folder

A worker uploads a finished shard and then its metadata. A reader checks the shard against the checksum in the
metadata. So an incomplete upload is not used, and two workers may safely upload the same shard.
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
from retbench.store.shard_store import PLAN, ShardStore, VectorBlock
from retbench.store.vector_formats import VectorDtype
from retbench.system.durable_files import write_file_atomically


@dataclass(frozen=True)
class RemoteStorage:
    """Shared storage at one address."""

    address: str

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        import fsspec

        with self._translate_errors():
            filesystem: tuple[Any, str] = fsspec.core.url_to_fs(self.address)
        return filesystem

    def open_shard_store(self, store: ShardStore) -> "RemoteShardStore":
        """The remote copy of a local store."""
        return RemoteShardStore(self, f"embeddings/{store.folder.parent.name}/{store.folder.name}", store.vector_dtype)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file."""
        filesystem, root = self._filesystem
        path = f"{root}/{name}"
        with self._translate_errors():
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, content)

    def read_file(self, name: str) -> bytes | None:
        """The bytes of a file, or None if it does not exist."""
        filesystem, root = self._filesystem
        with self._translate_errors():
            try:
                content: bytes = filesystem.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def upload_run(self, run: Path, results: Path) -> None:
        """Copy a finished run. The record goes last: a run with a record is complete."""
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
    """The remote copy of one shard store."""

    storage: RemoteStorage
    name: str
    vector_dtype: VectorDtype

    def sync_plan(self, store: ShardStore) -> None:
        """Make local and remote plan the same: download the plan if there is none here, else upload it."""
        name = f"{self.name}/{PLAN}"
        remote_plan = json.loads(self.storage.read_file(name) or b"null")
        if not store.has_plan():
            if remote_plan:
                store.load_or_create_plan(lambda: remote_plan)
            return
        local_plan = store.load_or_create_plan(dict)
        if remote_plan is None:
            self.storage.write_file(name, json.dumps(local_plan, indent=1).encode())
        elif remote_plan != local_plan:
            raise DataError(
                f"{self.storage.address} has these vectors with a different batch plan than {store.folder}",
                f"remove {store.folder} to use the remote plan, or give another store=",
            )

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Upload one finished shard. Returns the block as it will be read."""
        with TemporaryDirectory() as folder:
            store = ShardStore(Path(folder), self.vector_dtype)
            stored_block = store.write_shard(shard, block, tokens, seconds, split_batches)
            for file in store.get_shard_files(shard):
                self.storage.write_file(f"{self.name}/{file.name}", file.read_bytes())
        return stored_block

    def download_shard(self, shard: int, store: ShardStore) -> VectorBlock | None:
        """Copy a finished shard into the local store. Returns None if it is missing or damaged."""
        for file in store.get_shard_files(shard):
            content = self.storage.read_file(f"{self.name}/{file.name}")
            if content is None:
                return None
            write_file_atomically(file, content)
        return store.read_shard(shard)
