"""A failure: a cell that could not be finished. Its file is removed when a run of the same cell succeeds.

results/<suite>/<task>/<model>/<method>.failed.json; for a reranked cell <method>+<reranker>.failed.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retbench.errors import DataError
from retbench.records.record_types import COUNT, LIST_OF_TEXT, TEXT, find_wrong_type
from retbench.system.durable_files import write_file_atomically
from retbench.system.file_kinds import require_regular_file
from retbench.system.text_parsers import parse_json

FAILURE_SUFFIX = ".failed.json"
ANY_METHOD = "-"  # the model could not be loaded
TEXT_FIELDS = (
    "model", "method", "task", "suite", "split", "protocol", "status", "error", "next_step", "command",
)  # fmt: skip
FAILURE_TYPES = {**dict.fromkeys(TEXT_FIELDS, TEXT), "sample": (int, None), "exit_code": COUNT, "rerank": LIST_OF_TEXT}


@dataclass(frozen=True)
class Failure:
    """The requested cell and the reason why it failed."""

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
        """The method and the rerankers."""
        return format_label(self.method, self.rerank)

    def write(self, file: Path) -> None:
        """Write the failure to a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(
            file, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode(errors="backslashreplace")
        )


def format_label(method: str, rerank: Sequence[str]) -> str:
    """Join a method and its rerankers to one name."""
    return "+".join((method, *rerank))


def read_failure(file: Path) -> Failure:
    """Read one failure."""
    require_regular_file(file)
    try:
        failure = Failure(**parse_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(f"{file} is not the file of a failed cell: {problem}", "remove it") from problem
    if wrong_type := find_wrong_type(failure, FAILURE_TYPES):
        raise DataError(f"{file} is not the file of a failed cell: {wrong_type}", "remove it")
    return failure
