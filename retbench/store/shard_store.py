"""A shard store: the vectors of one key in files of a few thousand rows. A file is complete or absent.

    plan.json               how the texts were cut into shards and batches; fixed at the first start, reused on resume
    shard-00000.safetensors row numbers and their vectors, in float32 or fewer bytes; where a text has several vectors
                            (late interaction) or weighted terms (sparse), also the offsets of each text, as in CSR
    shard-00000.json        metadata: checksum, tokens, seconds; written after the shard, which is ignored without it
    lock                    held by the process that writes
    manifest.json           written last: all shards are complete
    used-by/                one empty file for each cell that uses these vectors

Every file is written under a temporary name, flushed to the disk and renamed.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from retbench.store.vector_formats import VECTOR_FORMATS, VectorDtype, decode_vectors
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically
from retbench.system.file_locks import hold_lock
from retbench.system.user_config import encode_path_part

LOCK, PLAN, MANIFEST, USED_BY = "lock", "plan.json", "manifest.json", "used-by"

log = logging.getLogger(__name__)


class VectorBlock(NamedTuple):
    """Row numbers and what an encoder made of their texts, by the kind of the method.

    dense: `vectors` has one row for each text. multi-vector: those of text i are `vectors[offsets[i]:offsets[i + 1]]`.
    sparse: the same slices of `terms` and of `vectors` are the term ids of text i and their weights.
    """

    rows: np.ndarray
    vectors: np.ndarray
    offsets: np.ndarray | None = None
    terms: np.ndarray | None = None

    def get_offsets(self) -> np.ndarray:
        """Return where each text starts and ends; a dense block has one row for each text."""
        return np.arange(len(self.rows) + 1) if self.offsets is None else self.offsets


@dataclass(frozen=True)
class ShardCost:
    """What it cost to compute one or more shards."""

    tokens: int
    seconds: float
    split_batches: int  # batches that ran out of memory and were run again in halves


def _build_block(tensors: dict[str, np.ndarray]) -> VectorBlock:
    return VectorBlock(tensors["rows"], decode_vectors(tensors), tensors.get("offsets"), tensors.get("terms"))


def _read_metadata(file: Path) -> dict[str, Any]:
    """The object in a metadata file; empty if the file is missing or damaged."""
    try:
        return parse_checked_json(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


@dataclass(frozen=True)
class ShardStore:
    """The shards of one embedding key."""

    folder: Path
    vector_dtype: VectorDtype = "fp32"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock. A second process with the same key waits, then finds the work done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / LOCK):
            for partial in self.folder.glob("*.partial"):  # left by a process that was killed while writing
                partial.unlink()
            yield

    def record_use(self, cell: str) -> None:
        """Record that a cell uses these vectors."""
        (self.folder / USED_BY).mkdir(parents=True, exist_ok=True)
        (self.folder / USED_BY / encode_path_part(cell)).touch()

    def has_plan(self) -> bool:
        """Whether a valid plan is stored."""
        return bool(_read_metadata(self.folder / PLAN))

    def is_complete(self) -> bool:
        """Whether all shards are written."""
        return bool(_read_metadata(self.folder / MANIFEST))

    def load_or_create_plan(self, create: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored plan, or a new one. Without its plan a shard is useless, so a lost plan deletes all shards."""
        file = self.folder / PLAN
        if not self.has_plan():
            self._delete_shards()
            write_file_atomically(file, encode_checked_json(create()))
        return _read_metadata(file)

    def _delete_shards(self) -> None:
        paths = [path for path in (self.folder / MANIFEST, *self.folder.glob("shard-*")) if path.exists()]
        if paths:
            log.warning("the plan of %s is missing or damaged: its vectors are computed again", self.folder.name[:12])
        for path in paths:
            path.unlink()

    def has_shard(self, shard: int) -> bool:
        """Whether the shard was written. Its checksum is only verified by `read_shard`."""
        return self._get_metadata_path(shard).exists() and self._get_shard_path(shard).exists()

    def read_shard(self, shard: int) -> VectorBlock | None:
        """A finished shard, or None if it is missing or damaged. Damage is logged."""
        if not self._get_metadata_path(shard).exists():
            return None
        content = self._get_shard_path(shard).read_bytes() if self._get_shard_path(shard).exists() else b""
        if hashlib.sha256(content).hexdigest() != _read_metadata(self._get_metadata_path(shard)).get("sha256"):
            log.warning("shard %d of %s is damaged: it is computed again", shard, self.folder.name[:12])
            self._get_metadata_path(shard).unlink()
            return None
        return _build_block(load(content))

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Store one finished shard and its cost. Returns the block as it will be read (formats may lose precision)."""
        tensors = {"rows": block.rows.astype(np.int64), **VECTOR_FORMATS[self.vector_dtype].encode(block.vectors)}
        if block.offsets is not None:
            tensors["offsets"] = block.offsets.astype(np.int64)
        if block.terms is not None:
            tensors["terms"] = block.terms.astype(np.int32)
        content = save(tensors)
        metadata = {"sha256": hashlib.sha256(content).hexdigest(), **asdict(ShardCost(tokens, seconds, split_batches))}
        write_file_atomically(self._get_shard_path(shard), content)
        write_file_atomically(self._get_metadata_path(shard), encode_checked_json(metadata))
        return _build_block(tensors)._replace(rows=block.rows)

    def write_manifest(self, facts: dict[str, Any]) -> None:
        """Mark the store as complete; `facts` go into the manifest."""
        write_file_atomically(self.folder / MANIFEST, encode_checked_json(facts))

    def read_manifest(self) -> dict[str, Any]:
        """The facts given to `write_manifest`; empty if the store is not complete."""
        return _read_metadata(self.folder / MANIFEST)

    def compute_total_cost(self) -> ShardCost:
        """The summed cost of all stored shards, over all runs that computed them."""
        entries = [entry for file in sorted(self.folder.glob("shard-*.json")) if (entry := _read_metadata(file))]
        return ShardCost(
            *(sum(entry.get(key, 0) for entry in entries) for key in ("tokens", "seconds", "split_batches"))
        )

    def get_shard_files(self, shard: int) -> tuple[Path, Path]:
        """The files of a shard, in the order they are written."""
        return self._get_shard_path(shard), self._get_metadata_path(shard)

    def _get_shard_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _get_metadata_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
