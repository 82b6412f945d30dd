"""Scores of pairs of texts, kept by their content: an interrupted or repeated training never computes one twice.

One SQLite file per model and setting: $RETBENCH_CACHE/pair-scores/<model>/<digest>.sqlite. A pair is 16 bytes of the
digest of its two texts. What is written in one call is there completely or not at all.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.errors import DataError, ResourceError
from retbench.store.digest import compute_digest
from retbench.system.user_config import encode_path_part, get_cache_folder

KEYS_PER_STATEMENT = 500  # SQLite's smallest limit of variables is 999
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
        return PairScoreStore(get_cache_folder() / "pair-scores" / encode_path_part(model) / name)

    def find_scores(self, pairs: Sequence[Pair]) -> list[float | None]:
        """The stored score of every pair; None where there is none."""
        if not self.file.exists():
            return [None] * len(pairs)
        keys = list(map(_make_key, pairs))
        found: dict[bytes, float] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), KEYS_PER_STATEMENT):
                part = keys[start : start + KEYS_PER_STATEMENT]
                places = ",".join("?" * len(part))
                statement = f"SELECT pair, score FROM scores WHERE pair IN ({places})"  # noqa: S608  # only ? marks
                found.update(connection.execute(statement, part).fetchall())
        return [found.get(key) for key in keys]

    def add_scores(self, pairs: Sequence[Pair], scores: Sequence[float]) -> None:
        """Store the scores of some pairs."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows = [(_make_key(pair), float(score)) for pair, score in zip(pairs, scores, strict=True)]
        with self._connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.file, timeout=WAIT_SECONDS)
            try:
                with connection:  # commits, or rolls back after an error
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS scores (pair BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"
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


def _make_key(pair: Pair) -> bytes:
    digest = hashlib.sha256()
    for text in pair:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()[:16]
