"""Digests of settings. Two settings with the same content get the same digest, whatever the order of their keys."""

import hashlib
import json
from typing import Any


def to_canonical_json(facts: Any) -> str:
    """JSON with sorted keys and no spaces: equal facts give equal text."""
    return json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def compute_digest(facts: Any) -> str:
    """SHA-256 of the canonical JSON; a name of a file may hold bytes that are not UTF-8."""
    return hashlib.sha256(to_canonical_json(facts).encode(errors="surrogatepass")).hexdigest()
