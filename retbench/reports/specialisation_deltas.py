"""What specialisation does: a model minus the model it was made from, same method, same queries.

The pairs come from the cards (`parent`). All differences of a block are one family of tests, corrected by Holm.
"""

from dataclasses import dataclass

from retbench.reports.leaderboard import Block, Row
from retbench.reports.ranks import weighted
from retbench.scoring.significance import Interval, bootstrap_interval, holm, paired_test


@dataclass(frozen=True)
class Delta:
    """Child minus parent on one task, or on average (task none)."""

    child: Row
    parent: Row
    task: str | None
    difference: float
    interval: Interval
    p_value: float  # corrected over the block


def deltas(block: Block) -> list[Delta]:
    """Every difference the cards ask for, child by child."""
    pairs = [(child, parent) for child in block.rows for parent in block.rows if _made_from(child, parent)]
    found = [_delta(block, child, parent, task) for child, parent in pairs for task in _goals(block, child, parent)]
    adjusted = holm([delta.p_value for delta in found])
    return [
        Delta(one.child, one.parent, one.task, one.difference, one.interval, p_value)
        for one, p_value in zip(found, adjusted, strict=True)
    ]


def _made_from(child: Row, parent: Row) -> bool:
    made_from = child.card.get("parent")
    return bool(parent.runs) and made_from == parent.card.get("name", parent.model) and child.label == parent.label


def _goals(block: Block, child: Row, parent: Row) -> list[str | None]:
    shared: list[str | None] = [task for task in block.tasks if task in child.runs and task in parent.runs]
    return [None, *shared] if len(shared) == len(block.tasks) > 1 else shared


def _delta(block: Block, child: Row, parent: Row, task: str | None) -> Delta:
    if task is None:
        a, b = (weighted(row.runs, block.tasks, block.suite) for row in (child, parent))
    else:
        a, b = child.runs[task].values, parent.runs[task].values
    return Delta(child, parent, task, float((a - b).mean()), bootstrap_interval(a - b), paired_test(a, b))
