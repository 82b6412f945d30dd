"""The plan of a training (`plan.json`): fixed when it starts, so that a resumed training follows the same plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retbench.cards.stored_recipe import complete_recipe
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError
from retbench.store.shard_store import write_file_atomically
from retbench.training import distributed

PLAN_FILE = "plan.json"


def load_or_create_plan(folder: Path, facts: dict[str, Any], count_steps: Callable[[], int]) -> int:
    """The number of steps; a folder that was begun with another recipe, parent or dataset is refused."""
    file, plain_facts = folder / PLAN_FILE, json.loads(json.dumps(facts))
    if not file.exists():
        steps = count_steps()
        steps = int(distributed.sum_over_processes(steps if distributed.get_rank() == 0 else 0))
        if distributed.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_file_atomically(file, json.dumps({**plain_facts, "steps": steps}, indent=1).encode())
        distributed.wait_for_all()
    plan = _read_plan(file)
    different = [key for key in plain_facts if plan.get(key) != plain_facts[key]]
    if different:
        raise DataError(f"{folder} was begun with another {' and '.join(different)}", "give another --out or --name")
    return int(plan["steps"])


def _read_plan(file: Path) -> dict[str, Any]:
    plan = read_json_object(file)
    if not isinstance(plan.get("recipe"), dict) or not isinstance(plan.get("steps"), int):
        raise DataError(f"{file} is damaged: it has no recipe or no steps", "delete its folder and train again")
    return {**plan, "recipe": complete_recipe(plan["recipe"])}  # a plan may be older than today's keys and fields
