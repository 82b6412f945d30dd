"""Effect of specialisation: score of a model minus score of its parent model, same method, same queries.

The pairs come from the model cards (`parent`). Holm's correction covers all differences of a leaderboard.
"""

from dataclasses import dataclass

from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.ranks import weight_query_scores
from retbench.scoring.significance import (
    ConfidenceInterval,
    adjust_p_values,
    compute_bootstrap_interval,
    compute_paired_p_value,
)


@dataclass(frozen=True)
class SpecialisationDelta:
    """Child minus parent on one task, or on average (task None)."""

    child: LeaderboardRow
    parent: LeaderboardRow
    task: str | None
    difference: float
    interval: ConfidenceInterval
    p_value: float  # with Holm's correction over the leaderboard


def compute_deltas(board: Leaderboard) -> list[SpecialisationDelta]:
    """The differences of all child and parent pairs."""
    pairs = [(child, parent) for child in board.rows for parent in board.rows if _is_parent_of_child(child, parent)]
    uncorrected = [
        _compute_delta(board, child, parent, task)
        for child, parent in pairs
        for task in _list_shared_columns(board, child, parent)
    ]
    adjusted = adjust_p_values([delta.p_value for delta in uncorrected])
    return [
        SpecialisationDelta(delta.child, delta.parent, delta.task, delta.difference, delta.interval, p_value)
        for delta, p_value in zip(uncorrected, adjusted, strict=True)
    ]


def _is_parent_of_child(child: LeaderboardRow, parent: LeaderboardRow) -> bool:
    parent_name = child.model_card.get("parent")
    return (
        bool(parent.runs) and parent_name == parent.model_card.get("name", parent.model) and child.label == parent.label
    )


def _list_shared_columns(board: Leaderboard, child: LeaderboardRow, parent: LeaderboardRow) -> list[str | None]:
    shared_tasks: list[str | None] = [task for task in board.tasks if task in child.runs and task in parent.runs]
    return [None, *shared_tasks] if len(shared_tasks) == len(board.tasks) > 1 else shared_tasks


def _compute_delta(
    board: Leaderboard, child: LeaderboardRow, parent: LeaderboardRow, task: str | None
) -> SpecialisationDelta:
    if task is None:
        a, b = (weight_query_scores(row.runs, board.tasks, board.suite) for row in (child, parent))
    else:
        a, b = child.runs[task].values, parent.runs[task].values
    return SpecialisationDelta(
        child, parent, task, float((a - b).mean()), compute_bootstrap_interval(a - b), compute_paired_p_value(a, b)
    )
