"""The plan of a training (`plan.json`): fixed when it starts, so that a resumed training follows the same plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retbench.cards.stored_recipe import complete_recipe
from retbench.errors import DataError
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically
from retbench.training import distributed

PLAN_FILE = "plan.json"
MAX_LISTED_CHANGES = 5
TRAIN_AGAIN = "delete its folder and train again"


def load_or_create_plan(folder: Path, facts: dict[str, Any], count_steps: Callable[[], int]) -> int:
    """The number of steps; a folder that was begun with another recipe, parent or dataset is refused."""
    file, plain_facts = folder / PLAN_FILE, json.loads(json.dumps(facts))
    if not file.exists():
        steps = count_steps()
        steps = int(distributed.sum_over_processes(steps if distributed.get_rank() == 0 else 0))
        if distributed.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_file_atomically(file, encode_checked_json({**plain_facts, "steps": steps}))
        distributed.wait_for_all()
    return require_same_plan(folder, facts)


def require_same_plan(folder: Path, facts: dict[str, Any]) -> int:
    """The number of steps of the plan in a folder, which must be of the same recipe, parent and dataset."""
    plan, plain_facts = _read_plan(folder / PLAN_FILE), json.loads(json.dumps(facts))
    different = [key for key in plain_facts if plan.get(key) != plain_facts[key]]
    if different:
        raise DataError(
            f"{folder} was begun with another {' and '.join(different)}: {describe_changes(plan, plain_facts)}",
            "give the old values, or another --out or --name",
        )
    return int(plan["steps"])


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The fields of `new` that differ from `old`, by their dotted names; empty if there are none."""
    different = [key for key in new if old.get(key) != new[key]]
    return _join_changes([change for key in different for change in _list_changes(key, old.get(key), new[key])])


def _list_changes(name: str, old: Any, new: Any) -> list[str]:
    """List the fields that differ, by their dotted names, with the old and the new value."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [f"{name} was {old!r:.60}, now {new!r:.60}"]
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return [
        change
        for key in keys
        for change in _list_changes(key if name == "recipe" else f"{name}.{key}", old.get(key), new.get(key))
    ]


def _join_changes(changes: list[str]) -> str:
    more = len(changes) - MAX_LISTED_CHANGES
    return "; ".join([*changes[:MAX_LISTED_CHANGES], *([f"and {more} more"] if more > 0 else [])])


def _read_plan(file: Path) -> dict[str, Any]:
    try:
        plan = parse_checked_json(file.read_bytes())
    except ValueError as problem:
        raise DataError(f"{file} is damaged: {problem}", TRAIN_AGAIN) from problem
    if not isinstance(plan.get("recipe"), dict) or not isinstance(plan.get("steps"), int):
        raise DataError(f"{file} is damaged: it has no recipe or no steps", TRAIN_AGAIN)
    return {**plan, "recipe": complete_recipe(plan["recipe"])}  # a plan may be older than today's keys and fields
