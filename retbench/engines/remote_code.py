"""Remote code (Python files beside weights): runs only if the user trusts it. Its digest is then in the record.

Trust is given by `retbench --trust-remote-code run ...` or the environment, never by a file in a downloaded folder.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError
from retbench.system.checksums import compute_sha256

TRUST_VARIABLE = "RETBENCH_TRUST_REMOTE_CODE"
CONFIG_FILES = ("config.json", "tokenizer_config.json")


def is_remote_code_trusted() -> bool:
    """Whether the user allowed remote code to run."""
    return os.environ.get(TRUST_VARIABLE, "").lower() in ("1", "true", "yes", "on")


def compute_code_digest(folder: Path) -> str | None:
    """The digest of the remote code that will run with these weights, or None if none will."""
    if not is_remote_code_trusted() or not _has_remote_code(folder):
        return None
    checksums = [f"{file.name} {compute_sha256(file)}" for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def _has_remote_code(folder: Path) -> bool:
    """Whether a config names classes outside of transformers."""
    return any("auto_map" in read_json_object(folder / name) for name in CONFIG_FILES if (folder / name).is_file())


@contextmanager
def explain_refused_code(folder: Path) -> Iterator[None]:
    """Wraps loading: turns the refusal of remote code into an error with the next step."""
    try:
        yield
    except ValueError as problem:
        if is_remote_code_trusted() or not _has_remote_code(folder):
            raise
        cause = f"{folder} can only be loaded by running the Python code beside its weights"
        step = "read that code; if you trust it, use `retbench --trust-remote-code run ...`; else use another model"
        raise DataError(cause, step) from problem
