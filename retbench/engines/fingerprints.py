"""Fingerprints: what weights are, wherever they lie."""

import hashlib
import json
from pathlib import Path
from typing import Any

from retbench.cards.checksums import cached_sha256
from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError

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
    sums = {file.name: cached_sha256(file) for pattern in IDENTITY for file in folder.glob(pattern)}
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in PROVENANCE}
    sums["config.json"] = hashlib.sha256(_canonical(config)).hexdigest()
    return hashlib.sha256(_canonical(sums)).hexdigest()


def of_modules(folder: Path) -> str:
    """The fingerprint of what sentence-transformers runs behind the backbone: its modules, with configs and weights."""
    named = folder / "modules.json"
    places = [module.get("path") for module in parse_json(named.read_text())] if named.is_file() else []
    files = [file for place in places if place for file in (folder / place).iterdir() if file.is_file()]
    sums = {file.relative_to(folder).as_posix(): cached_sha256(file) for file in (named, *files) if file.is_file()}
    return hashlib.sha256(_canonical(sums)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: not valid JSON: {problem}", "fetch the file again, or delete it") from problem
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object", "fetch the file again, or delete it")
    return value
