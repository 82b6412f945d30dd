"""The plan of a training on disk: fixed at the first start, so that a resumed run follows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retbench.errors import DataError
from retbench.store.shard_store import write_file_atomically
from retbench.training import distributed

PLAN_FILE = "plan.json"


def load_or_create_plan(folder: Path, facts: dict[str, Any], count: Callable[[], int]) -> int:
    """How many steps the plan has; one begun with another recipe, parent or data is not gone on with."""
    file, told = folder / PLAN_FILE, json.loads(json.dumps(facts))
    if not file.exists():
        steps = count()
        steps = int(distributed.sum_over_processes(steps if distributed.get_rank() == 0 else 0))
        if distributed.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_file_atomically(file, json.dumps({**told, "steps": steps}, indent=1).encode())
        distributed.wait_for_all()
    saved: dict[str, Any] = json.loads(file.read_text())
    other = [key for key in told if saved[key] != told[key]]
    if other:
        raise DataError(f"{folder} was begun with another {' and '.join(other)}", "give another --out or --name")
    return int(saved["steps"])
