"""Fingerprints: what weights are, wherever they lie."""

import hashlib
import json
from pathlib import Path
from typing import Any

from retbench.cards.checksums import cached_sha256
from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError

# What decides the vectors: weights, tokenizer, chat template (and config.json, which is read, not hashed as it lies).
IDENTITY_PATTERNS = (
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
PROVENANCE_KEYS = ("transformers_version", "_name_or_path")


def compute_folder_fingerprint(folder: Path) -> str:
    """The fingerprint of a Hugging Face folder; its name, its place and the version that wrote it do not matter."""
    sums = {file.name: cached_sha256(file) for pattern in IDENTITY_PATTERNS for file in folder.glob(pattern)}
    config = {
        key: value for key, value in read_json_object(folder / "config.json").items() if key not in PROVENANCE_KEYS
    }
    sums["config.json"] = hashlib.sha256(_encode_canonical_json(config)).hexdigest()
    return hashlib.sha256(_encode_canonical_json(sums)).hexdigest()


def compute_modules_fingerprint(folder: Path) -> str:
    """The fingerprint of what sentence-transformers runs behind the backbone: its modules, with configs and weights."""
    named = folder / "modules.json"
    places = [module.get("path") for module in parse_json(named.read_text())] if named.is_file() else []
    files = [file for place in places if place for file in (folder / place).iterdir() if file.is_file()]
    sums = {file.relative_to(folder).as_posix(): cached_sha256(file) for file in (named, *files) if file.is_file()}
    return hashlib.sha256(_encode_canonical_json(sums)).hexdigest()


def _encode_canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: not valid JSON: {problem}", "fetch the file again, or delete it") from problem
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object", "fetch the file again, or delete it")
    return value
