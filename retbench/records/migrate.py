"""Migration of old records to the current schema, one function per schema number.

A step takes the fields of one schema and returns those of the next. It leaves out what it cannot know.
"""

from collections.abc import Callable
from typing import Any

from retbench.errors import DataError
from retbench.records.record import SCHEMA

RecordFields = dict[str, Any]


def _remove_failures(facts: RecordFields) -> RecordFields:
    """1 to 2: a failed cell has its own file (failure.py); the list in a finished record was always empty."""
    return {key: value for key, value in facts.items() if key != "failures"}


STEPS: dict[int, Callable[[RecordFields], RecordFields]] = {1: _remove_failures}


def migrate_record(facts: RecordFields, name: str) -> RecordFields:
    """Return the fields in the current schema; refuse a record of a newer version."""
    schema = facts["schema"]
    if schema not in {*STEPS, SCHEMA}:
        raise DataError(f"{name} has schema {schema}, this version reads up to {SCHEMA}", "update retbench")
    while schema < SCHEMA:
        facts = {**STEPS[schema](facts), "schema": schema + 1}
        schema += 1
    return facts
