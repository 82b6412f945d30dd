"""Fingerprints: what weights are, wherever they lie. A big file is read once and its checksum remembered."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from retbench.cards import home
from retbench.errors import DataError

# Below this a file is read faster than it is looked up.
BIG = 1 << 20

# What decides the vectors: weights, tokenizer, chat template (and config.json, which is read, not hashed as it lies).
IDENTITY = (
    "*.safetensors",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
    "*.model",
    "*.jinja",
    "chat_template*",
)

# Who wrote the config and from where: the same model, saved again, is still the same model.
PROVENANCE = ("transformers_version", "_name_or_path")


def of_folder(folder: Path) -> str:
    """The fingerprint of a Hugging Face folder; its name, its place and the version that wrote it do not matter."""
    sums = {file.name: sha256(file) for pattern in IDENTITY for file in folder.glob(pattern)}
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in PROVENANCE}
    sums["config.json"] = hashlib.sha256(_canonical(config)).hexdigest()
    return hashlib.sha256(_canonical(sums)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: not valid JSON: {problem}", "fetch the file again, or delete it") from problem
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object", "fetch the file again, or delete it")
    return value


def sha256(file: Path) -> str:
    """The checksum of a file; that of a big one is remembered by place, size and time of change."""
    stat = file.stat()
    if stat.st_size < BIG:
        return digest(file)
    here, seen = str(file.resolve()), {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    known = _remembered().get(here, {})
    if {key: known.get(key) for key in seen} == seen:
        return str(known["sha256"])
    checksum = digest(file)
    _remember(here, {**seen, "sha256": checksum})
    return checksum


def digest(file: Path) -> str:
    """The checksum of a file, read now."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _memory() -> Path:
    return home.cache_folder() / "checksums.json"


def _remembered() -> dict[str, Any]:
    return read_json(_memory()) if _memory().exists() else {}


def _remember(here: str, entry: dict[str, Any]) -> None:
    memory = _memory()
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):
        fresh = memory.with_suffix(".partial")
        known = {file: value for file, value in _remembered().items() if Path(file).exists()}
        fresh.write_text(json.dumps({**known, here: entry}, indent=1), encoding="utf-8")
        os.replace(fresh, memory)
