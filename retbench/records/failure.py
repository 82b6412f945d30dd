"""The failure: a cell that could not be finished, kept as a note until a run of the same cell succeeds.

results/<suite>/<task>/<model>/<method>.failed.json; of a reranked cell <method>+<reranker>.failed.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError
from retbench.store.shard_store import write_file_atomically

FAILURE_SUFFIX = ".failed.json"
ANY_METHOD = "-"  # the model itself could not be opened


@dataclass(frozen=True)
class Failure:
    """What was asked for and why it did not happen."""

    model: str
    method: str
    task: str
    suite: str
    split: str
    protocol: str
    sample: int | None
    status: Literal["failed", "skipped"]
    error: str
    next_step: str
    exit_code: int
    command: str
    rerank: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The method, and what came after it."""
        return format_label(self.method, self.rerank)

    def write(self, file: Path) -> None:
        """Store the note."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(file, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())


def format_label(method: str, rerank: Sequence[str]) -> str:
    """A method and its rerankers as one name."""
    return "+".join((method, *rerank))


def read_failure(file: Path) -> Failure:
    """One note."""
    try:
        return Failure(**parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise DataError(f"{file} is not a note of a failed cell: {problem}", "remove it") from problem
