"""The record: everything about one (model, method, task) run, so that its number can be explained and repeated."""

from dataclasses import dataclass
from typing import Any

SCHEMA = 2  # what changed, and how an older record is read: migrate.py


@dataclass(frozen=True)
class Record:
    """What `record.json` holds."""

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
