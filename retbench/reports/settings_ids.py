"""The settings-ids behind a leaderboard: what `compare`, `inspect`, `verify` and `export` take to find a run."""

from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard

ID_HEADS = ["settings-id", "task", "model", "method"]


def list_settings_ids(board: Leaderboard) -> list[list[str]]:
    """The id, task, model and method of every run, in the order of the leaderboard."""
    return [
        [row.runs[task].record.settings_id, task, row.model, row.label]
        for row in board.rows
        for task in board.tasks
        if task in row.runs
    ]


def choose_runs_to_compare(boards: list[Leaderboard]) -> tuple[ScoredRun, ScoredRun] | None:
    """The best row and the next one, on the first task that both have; None if no leaderboard has two such rows."""
    for board in boards:
        for first, second in zip(board.rows, board.rows[1:], strict=False):
            task = next((task for task in board.tasks if task in first.runs and task in second.runs), None)
            if task:
                return first.runs[task], second.runs[task]
    return None
