"""The averaging tree of a suite: a group of tasks (the twelve CQADupStack forums) counts as one entry, its mean."""

from collections.abc import Iterable, Mapping
from math import fsum

from retbench.cards import catalog


def entries(suite: str, tasks: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """What is averaged: a task or a group, with its members among `tasks` (all of the suite's if none are given)."""
    card = catalog.load_suites().find(suite) if suite in catalog.load_suites() else None
    groups = (card.groups or {}) if card else {}
    owner = {task: group for group, members in groups.items() for task in members}
    found: dict[str, tuple[str, ...]] = {}
    for task in (card.expand_tasks() if card else ()) if tasks is None else tasks:
        name = owner.get(task, task)
        found[name] = (*found.get(name, ()), task)
    return found


def tree_weights(suite: str, tasks: Iterable[str]) -> dict[str, float]:
    """What each task counts in the suite's mean; the weights sum to one."""
    found = entries(suite, tasks)
    return {task: 1 / len(found) / len(members) for members in found.values() for task in members}


def tree_mean(suite: str, scores: Mapping[str, float]) -> float:
    """The mean over the suite's entries."""
    weights = tree_weights(suite, scores)
    return fsum(weights[task] * score for task, score in scores.items())
