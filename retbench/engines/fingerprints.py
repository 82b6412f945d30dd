"""Fingerprints identify weights by content, not by name or location."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retbench.cards.published_modules import (
    MODULES_FILE,
    ROUTER_FILE,
    find_backbone_folder,
    read_module_paths,
)
from retbench.errors import DataError
from retbench.system.checksums import cached_sha256
from retbench.system.text_parsers import parse_json

# The files that determine vectors: weights, tokenizer, chat template. config.json is hashed by content, see below.
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
    # tokenizers of few models: their vocabularies under other names, and a folder of chat templates
    "*.tiktoken",
    "*.spm",
    "*.codes",
    "dict.txt",
    "tekken.json",
    "entity_vocab.json",
    "additional_chat_templates/*.jinja",
)

# Config keys that change when the same model is saved again; they are left out.
PROVENANCE_KEYS = ("transformers_version", "_name_or_path")


def compute_folder_fingerprint(folder: Path, compute_checksum: Callable[[Path], str] = cached_sha256) -> str:
    """The fingerprint of a Hugging Face folder. Name, location and the version that saved it have no influence."""
    files = {file for pattern in IDENTITY_PATTERNS for file in folder.glob(pattern) if file.is_file()}
    checksums = {file.relative_to(folder).as_posix(): compute_checksum(file) for file in files}
    config = {
        key: value for key, value in read_json_object(folder / "config.json").items() if key not in PROVENANCE_KEYS
    }
    checksums["config.json"] = hashlib.sha256(_encode_canonical_json(config)).hexdigest()
    return hashlib.sha256(_encode_canonical_json(checksums)).hexdigest()


def compute_modules_fingerprint(folder: Path) -> str:
    """The fingerprint of the sentence-transformers modules: configs and weights of what follows the backbone."""
    modules_file = folder / MODULES_FILE
    paths = read_module_paths(folder)
    # a module without files (Normalize) may have no folder: git and the hub keep no empty ones
    parts = [folder / path for path in paths if path and folder / path != find_backbone_folder(folder)]
    files = [file for part in parts for file in part.glob("*") if file.is_file()]
    checksums = {
        file.relative_to(folder).as_posix(): cached_sha256(file)
        for file in (modules_file, folder / ROUTER_FILE, *files)
        if file.is_file()
    }
    return hashlib.sha256(_encode_canonical_json(checksums)).hexdigest()


def _encode_canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: not valid JSON: {problem}", "fetch the file again, or delete it") from problem
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object", "fetch the file again, or delete it")
    return value
