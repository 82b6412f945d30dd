"""Shards: a few thousand vectors a file, each there completely or not at all.

    plan.json               how the texts were cut into shards and batches; fixed at the first start, reused on resume
    shard-00000.safetensors row numbers and their vectors, in float32 or fewer bytes
    shard-00000.json        its checksum, tokens, seconds; written after the shard, which does not count without it
    lock                    held by the process at work
    manifest.json           written last: every shard is there
    used-by/                one empty file for each cell that asked for these vectors

Every file is written under a temporary name, flushed to the disk and renamed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from safetensors.numpy import load, save

from retbench.cards.user_config import encode_path_part
from retbench.errors import ResourceError
from retbench.store.vector_formats import VECTOR_FORMATS, VectorDtype, decode_vectors

LOCK, PLAN, MANIFEST, USED_BY = "lock", "plan.json", "manifest.json", "used-by"
CHECKSUM_KEY = "seal"  # of a note: the checksum of everything else in it


log = logging.getLogger(__name__)


class VectorBlock(NamedTuple):
    """Some rows and their vectors."""

    rows: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class ShardCost:
    """What it took to compute some shards."""

    tokens: int
    seconds: float
    split_batches: int  # batches that ran out of memory and were run in halves


def write_file_atomically(file: Path, content: bytes) -> None:
    """Write a file that is either complete or not there."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(file)
        flush_to_disk(file.parent)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"{file} could not be written: {problem.strerror}",
            "make room (retbench doctor shows the disk), then run the same command: what is finished is kept",
        ) from problem


def _read_metadata(file: Path) -> dict[str, Any]:
    """The object in a note; one that is damaged or not there says nothing."""
    try:
        facts = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    seal = facts.pop(CHECKSUM_KEY, None)  # the first stores had none
    return facts if seal in (None, _compute_checksum(facts)) else {}


def _encode_with_checksum(facts: dict[str, Any]) -> bytes:
    """A note with a checksum of its own, so that one changed digit is seen."""
    return json.dumps({**facts, CHECKSUM_KEY: _compute_checksum(facts)}, indent=1).encode()


def _compute_checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def flush_to_disk(path: Path) -> None:
    """Make what was written survive a power cut; of a rename it is the folder: a name is the folder's content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class ShardStore:
    """The vectors of one key."""

    folder: Path
    vector_dtype: VectorDtype = "fp32"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Two processes with the same key would do the same work: the second waits, then finds it done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            for orphan in self.folder.glob("*.partial"):  # of a process that was killed while it wrote
                orphan.unlink()
            yield

    def record_use(self, cell: str) -> None:
        """Remember who asked for these vectors."""
        (self.folder / USED_BY).mkdir(parents=True, exist_ok=True)
        (self.folder / USED_BY / encode_path_part(cell)).touch()

    def has_plan(self) -> bool:
        """True when a first start fixed the plan."""
        return bool(_read_metadata(self.folder / PLAN))

    def is_complete(self) -> bool:
        """True when every shard was written."""
        return bool(_read_metadata(self.folder / MANIFEST))

    def load_or_create_plan(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The plan fixed at the first start; without it no shard can be placed, so all of them go with a lost one."""
        file = self.folder / PLAN
        if not self.has_plan():
            self._delete_shards()
            write_file_atomically(file, _encode_with_checksum(make()))
        return _read_metadata(file)

    def _delete_shards(self) -> None:
        left = [path for path in (self.folder / MANIFEST, *self.folder.glob("shard-*")) if path.exists()]
        if left:
            log.warning("the plan of %s is lost or damaged: its vectors are computed again", self.folder.name[:12])
        for path in left:
            path.unlink()

    def has_shard(self, shard: int) -> bool:
        """True when the shard was written; its checksum is looked at when it is read."""
        return self._get_metadata_path(shard).exists() and self._get_shard_path(shard).exists()

    def read_shard(self, shard: int) -> VectorBlock | None:
        """A finished shard; none where it is missing or damaged, and damage is told."""
        if not self._get_metadata_path(shard).exists():
            return None
        content = self._get_shard_path(shard).read_bytes() if self._get_shard_path(shard).exists() else b""
        if hashlib.sha256(content).hexdigest() != _read_metadata(self._get_metadata_path(shard)).get("sha256"):
            log.warning("shard %d of %s is damaged: it is computed again", shard, self.folder.name[:12])
            self._get_metadata_path(shard).unlink()
            return None
        tensors = load(content)
        return VectorBlock(tensors["rows"], decode_vectors(tensors))

    def write_shard(
        self, shard: int, block: VectorBlock, tokens: int, seconds: float, split_batches: int = 0
    ) -> VectorBlock:
        """Store one finished shard and what it took; the block as it will be read from now on."""
        tensors = {"rows": block.rows.astype(np.int64), **VECTOR_FORMATS[self.vector_dtype].encode(block.vectors)}
        content = save(tensors)
        note = {"sha256": hashlib.sha256(content).hexdigest(), **asdict(ShardCost(tokens, seconds, split_batches))}
        write_file_atomically(self._get_shard_path(shard), content)
        write_file_atomically(self._get_metadata_path(shard), _encode_with_checksum(note))
        return VectorBlock(block.rows, decode_vectors(tensors))

    def write_manifest(self, facts: dict[str, Any]) -> None:
        """Say that nothing is missing, and what it took."""
        write_file_atomically(self.folder / MANIFEST, _encode_with_checksum(facts))

    def read_manifest(self) -> dict[str, Any]:
        """What `finish` was told."""
        return _read_metadata(self.folder / MANIFEST)

    def compute_total_cost(self) -> ShardCost:
        """What the stored shards took together, over all the runs that made them."""
        notes = [note for file in sorted(self.folder.glob("shard-*.json")) if (note := _read_metadata(file))]
        return ShardCost(*(sum(note.get(key, 0) for note in notes) for key in ("tokens", "seconds", "split_batches")))

    def get_shard_files(self, shard: int) -> tuple[Path, Path]:
        """A shard's files, in the order they are written."""
        return self._get_shard_path(shard), self._get_metadata_path(shard)

    def _get_shard_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _get_metadata_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
