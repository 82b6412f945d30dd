"""Old records in today's form: one function a step, so that a record of any age can be read.

A step takes the facts of one schema and returns those of the next. What a step cannot know it leaves out or marks as
not known; it never makes a fact up.
"""

from collections.abc import Callable
from typing import Any

from retbench.errors import DataError
from retbench.records.record import SCHEMA

Facts = dict[str, Any]


def _failures_left(facts: Facts) -> Facts:
    """1 to 2: a failed cell became a note of its own (failure.py); the list in a finished record was always empty."""
    return {key: value for key, value in facts.items() if key != "failures"}


STEPS: dict[int, Callable[[Facts], Facts]] = {1: _failures_left}


def migrate_record(facts: Facts, name: str) -> Facts:
    """The facts in today's schema; a record of the future is refused."""
    schema = facts["schema"]
    if schema not in {*STEPS, SCHEMA}:
        raise DataError(f"{name} has schema {schema}, this version reads up to {SCHEMA}", "update retbench")
    while schema < SCHEMA:
        facts = {**STEPS[schema](facts), "schema": schema + 1}
        schema += 1
    return facts
