"""A buffer for the token ids of a whole corpus: in memory while small, else in an anonymous memory-mapped file.

Half a billion ids take two gigabytes, and a shard needs only a small part of them.
"""

import mmap
import tempfile
from collections.abc import Iterable
from itertools import chain
from typing import IO

import numpy as np

from retbench.system.user_config import get_cache_folder

MAX_BYTES_IN_MEMORY = 1 << 24


class TokenIdBuffer:
    """Token ids, appended chunk by chunk. A context manager: leaving it closes the file; the mapping stays valid."""

    def __init__(self) -> None:
        self.lengths: list[np.ndarray] = []
        self.parts: list[np.ndarray] = []
        self.file: IO[bytes] | None = None

    def __enter__(self) -> "TokenIdBuffer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def append(self, texts: list[list[int]]) -> None:
        """Append the ids of some texts."""
        self.lengths.append(np.fromiter(map(len, texts), np.int64, len(texts)))
        self.parts.append(np.fromiter(chain.from_iterable(texts), np.int32, int(self.lengths[-1].sum())))
        if sum(part.nbytes for part in self.parts) > MAX_BYTES_IN_MEMORY:
            self._write_to_file()

    def read_all(self) -> np.ndarray:
        """All ids, one text after the other."""
        if self.file is None:
            return concatenate(self.parts, np.int32)
        self._write_to_file()
        return np.frombuffer(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.int32)

    def compute_offsets(self) -> np.ndarray:
        """The start of each text, and the end of the last one."""
        return np.concatenate(([0], np.cumsum(concatenate(self.lengths, np.int64))))

    def _write_to_file(self) -> None:
        if self.file is None:
            get_cache_folder().mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=get_cache_folder())  # noqa: SIM115  # __exit__ closes it
        for part in self.parts:
            self.file.write(part.tobytes())
        self.file.flush()
        self.parts = []


def concatenate(parts: Iterable[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """All parts as one array, also if there are none."""
    return np.concatenate([np.empty(0, dtype=dtype), *parts])


def release_pages(flat: np.ndarray) -> None:
    """Release the memory pages of a mapped file; they can be read again."""
    mapped_file = find_mapped_file(flat)
    if mapped_file and hasattr(mmap, "MADV_DONTNEED"):
        mapped_file.madvise(mmap.MADV_DONTNEED)


def find_mapped_file(flat: np.ndarray) -> mmap.mmap | None:
    """The memory-mapped file behind an array, or None."""
    view = flat.base
    owner = view.obj if isinstance(view, memoryview) else view
    return owner if isinstance(owner, mmap.mmap) else None
