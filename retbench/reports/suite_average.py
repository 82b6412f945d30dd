"""The averaging tree of a suite: a group of tasks (the twelve CQADupStack forums) counts as one entry."""

from collections.abc import Iterable, Mapping
from math import fsum

from retbench.cards import catalog


def group_tasks(suite: str, tasks: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The entries of the average: a task or group, with its members among `tasks` (default: all of the suite)."""
    card = catalog.load_suites().find(suite) if suite in catalog.load_suites() else None
    groups = (card.groups or {}) if card else {}
    group_of_task = {task: group for group, members in groups.items() for task in members}
    members_by_entry: dict[str, tuple[str, ...]] = {}
    for task in (card.expand_tasks() if card else ()) if tasks is None else tasks:
        entry = group_of_task.get(task, task)
        members_by_entry[entry] = (*members_by_entry.get(entry, ()), task)
    return members_by_entry


def compute_task_weights(suite: str, tasks: Iterable[str]) -> dict[str, float]:
    """The weight of each task in the suite's mean; the weights sum to one."""
    members_by_entry = group_tasks(suite, tasks)
    return {task: 1 / len(members_by_entry) / len(members) for members in members_by_entry.values() for task in members}


def compute_suite_mean(suite: str, scores: Mapping[str, float]) -> float:
    """The mean over the suite's entries."""
    weights = compute_task_weights(suite, scores)
    return fsum(weights[task] * score for task, score in scores.items())
