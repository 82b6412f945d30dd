"""JSON objects with a checksum over themselves, so that a single changed digit is detected when they are read."""

import hashlib
import json
from typing import Any

from retbench.system.text_parsers import parse_json

CHECKSUM_KEY = "seal"  # key of the checksum over all other entries


def encode_checked_json(facts: dict[str, Any]) -> bytes:
    """Write an object with its checksum."""
    return json.dumps({**facts, CHECKSUM_KEY: _compute_checksum(facts)}, indent=1).encode()


def parse_checked_json(content: bytes) -> dict[str, Any]:
    """Read an object and verify its checksum; one of an early version has none. Raises ValueError for another text."""
    facts = parse_json(content)
    if not isinstance(facts, dict):
        raise ValueError(f"it holds {type(facts).__name__}, not an object")
    checksum = facts.pop(CHECKSUM_KEY, None)
    if checksum not in (None, _compute_checksum(facts)):
        raise ValueError("its checksum is wrong: it changed on disk")
    return facts


def _compute_checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
