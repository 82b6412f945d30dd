"""Scores of pairs of texts, kept by their content: an interrupted or repeated training never computes one twice.

One SQLite file per model and setting: $RETBENCH_CACHE/pair-scores/<model>/<digest>.sqlite. A pair is 16 bytes of the
digest of its two texts. What is written in one call is there completely or not at all. SQLite does not notice a flipped
bit in a score, so each has a checksum; a pair whose score changed on disk counts as missing and is scored again.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.errors import DataError, ResourceError
from retbench.store.digest import compute_digest
from retbench.system.user_config import encode_path_part, get_cache_folder

KEYS_PER_STATEMENT = 500  # SQLite's smallest limit of variables is 999
PAIR_SCORES_FOLDER = "pair-scores"
WAIT_SECONDS = 60.0  # for another process that is writing

Pair = tuple[str, str]  # a query and a document


@dataclass(frozen=True)
class PairScoreStore:
    """The scores of one model with one setting."""

    file: Path

    @staticmethod
    def open_for(model: str, settings: dict[str, Any]) -> "PairScoreStore":
        """The store of a model whose scores follow from these settings."""
        name = f"{compute_digest(settings)[:32]}.sqlite"
        return PairScoreStore(get_cache_folder() / PAIR_SCORES_FOLDER / encode_path_part(model) / name)

    def find_scores(self, pairs: Sequence[Pair]) -> list[float | None]:
        """The stored score of every pair; None where there is none."""
        if not self.file.exists():
            return [None] * len(pairs)
        keys, rows = list(map(_make_key, pairs)), list[tuple[Any, Any, Any]]()
        with self._connect() as connection:
            for start in range(0, len(keys), KEYS_PER_STATEMENT):
                part = keys[start : start + KEYS_PER_STATEMENT]
                places = ",".join("?" * len(part))
                statement = f"SELECT pair, score, checksum FROM checked_scores WHERE pair IN ({places})"  # noqa: S608  # only ? marks
                rows += connection.execute(statement, part).fetchall()
        found = {key: score for key, score, checksum in rows if _compute_checksum(key, score) == checksum}
        return [found.get(key) for key in keys]

    def add_scores(self, pairs: Sequence[Pair], scores: Sequence[float]) -> None:
        """Store the scores of some pairs."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        scored = [(_make_key(pair), float(score)) for pair, score in zip(pairs, scores, strict=True)]
        rows = [(key, score, _compute_checksum(key, score)) for key, score in scored]
        with self._connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO checked_scores VALUES (?, ?, ?)", rows)

    def count_pairs(self) -> int | None:
        """The number of stored pairs; None if the file is damaged or another process is writing for long."""
        try:
            with self._connect() as connection:
                return int(connection.execute("SELECT COUNT(*) FROM checked_scores").fetchone()[0])
        except (DataError, ResourceError):
            return None

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.file, timeout=WAIT_SECONDS)
            try:
                with connection:  # commits, or rolls back after an error
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS checked_scores"
                        " (pair BLOB PRIMARY KEY, score REAL NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
                    )
                    yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as problem:
            raise ResourceError(
                f"{self.file} cannot be read or written: {problem}", "free space, or end the process that uses it"
            ) from problem
        except sqlite3.DatabaseError as problem:
            raise DataError(
                f"{self.file} is damaged: {problem}", "delete it; its scores are computed again"
            ) from problem


def _compute_checksum(key: bytes, score: object) -> bytes | None:
    """The checksum of a score; None if the value is no number, because its type changed on disk."""
    content = key + struct.pack("<d", score) if isinstance(score, float) else None
    return hashlib.sha256(content).digest()[:8] if content else None


def _make_key(pair: Pair) -> bytes:
    digest = hashlib.sha256()
    for text in pair:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()[:16]
