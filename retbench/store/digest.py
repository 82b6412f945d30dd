"""What makes two sets of vectors the same: one digest over everything that may change a vector, and nothing else."""

import hashlib
import json
from typing import Any


def to_canonical_json(facts: Any) -> str:
    """One JSON text for one set of facts, whatever the order they were collected in."""
    return json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def compute_digest(facts: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(to_canonical_json(facts).encode()).hexdigest()
