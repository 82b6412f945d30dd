"""Code that comes with weights: never run unless the command says so, and then its digest is part of the record.

`retbench --trust-remote-code run ...`, or the environment; never a file, which a stranger's folder could bring along.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retbench.cards.checksums import compute_sha256
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError

TRUST_VARIABLE = "RETBENCH_TRUST_REMOTE_CODE"
CONFIG_FILES = ("config.json", "tokenizer_config.json")


def is_remote_code_trusted() -> bool:
    """Whether the user of this command said that code beside weights may run."""
    return os.environ.get(TRUST_VARIABLE, "").lower() in ("1", "true", "yes", "on")


def compute_code_digest(folder: Path) -> str | None:
    """The digest of the code that will run with these weights; None where none will."""
    if not is_remote_code_trusted() or not _has_remote_code(folder):
        return None
    sums = [f"{file.name} {compute_sha256(file)}" for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _has_remote_code(folder: Path) -> bool:
    """Whether a config names classes outside the library."""
    return any("auto_map" in read_json_object(folder / name) for name in CONFIG_FILES if (folder / name).is_file())


@contextmanager
def explain_refused_code(folder: Path) -> Iterator[None]:
    """Around loading: weights that need code of their own are refused with the reason."""
    try:
        yield
    except ValueError as problem:
        if is_remote_code_trusted() or not _has_remote_code(folder):
            raise
        cause = f"{folder} can only be loaded by running the code that lies beside its weights"
        step = "read that code; if you trust it: `retbench --trust-remote-code run ...`; else choose another model"
        raise DataError(cause, step) from problem
