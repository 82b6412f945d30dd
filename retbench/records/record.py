"""The record: everything about one (model, method, task) run, so that its scores can be explained and reproduced."""

from dataclasses import dataclass
from typing import Any

from retbench.store.digest import compute_digest

SCHEMA = 2  # migrate.py reads older records


@dataclass(frozen=True)
class Record:
    """The content of `record.json`."""

    model: str
    method: str
    task: str
    suite: str
    settings_id: str
    settings: dict[str, Any]  # everything that may change a score; the settings-id is its digest
    cards: dict[str, Any]  # the cards' content as it was read
    collection: dict[str, Any]  # counts and fingerprints
    texts: dict[str, Any]  # by role: tokens, share truncated, plan
    machine: dict[str, Any]
    cost: dict[str, Any]  # seconds by phase, tokens per second, peak memory, size
    scores: dict[str, float]
    command: str
    created: str
    schema: int = SCHEMA


def compute_settings_id(settings: dict[str, Any]) -> str:
    """Return the id of a run: the first 12 hex digits of the digest of its settings."""
    return compute_digest(settings)[:12]
