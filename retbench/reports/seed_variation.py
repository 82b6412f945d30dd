"""Seed variation: groups trainings that differ only in their seed, and marks models trained with one seed."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retbench.cards.stored_recipe import complete_recipe
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.store.digest import to_canonical_json

ONE_SEED_MARK = "‡"


@dataclass(frozen=True)
class ScoreRange:
    """Mean, lowest and highest score over the seeds of a training."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ({100 * self.low:.2f}–{100 * self.high:.2f})"


@dataclass(frozen=True)
class SeedGroup:
    """A training with several seeds: mean and range of every score that all its rows have."""

    name: str
    label: str
    seeds: int
    score_ranges: dict[str | None, ScoreRange]  # by task or group; None is the average


def list_seed_groups(board: Leaderboard) -> list[SeedGroup]:
    """All trainings of a leaderboard with two seeds or more, best first."""
    rows_by_training: dict[str, list[LeaderboardRow]] = {}
    for row in board.rows:
        if (training_key := _build_training_key(row)) is not None:
            rows_by_training.setdefault(training_key, []).append(row)
    return [
        _build_seed_group(board, rows)
        for rows in rows_by_training.values()
        if len({_get_seed(row) for row in rows}) > 1
    ]


def _build_seed_group(board: Leaderboard, rows: list[LeaderboardRow]) -> SeedGroup:
    columns: list[str | None] = [*([None] if board.ranked_by is None else []), *board.entries]
    score_ranges = {}
    for column in columns:
        scores = [score for row in rows if (score := board.compute_score(row, column)) is not None]
        if len(scores) == len(rows):
            score_ranges[column] = ScoreRange(fmean(scores), min(scores), max(scores))
    training = _get_training(rows[0]) or {}
    parent, recipe = rows[0].model_card.get("parent"), training["recipe"].get("name", "adaptor")
    name = f"{parent} on {training['data'].get('set')} by {recipe}"
    return SeedGroup(name, rows[0].label, len({_get_seed(row) for row in rows}), score_ranges)


def has_one_seed(board: Leaderboard, row: LeaderboardRow) -> bool:
    """Whether a row's model was trained here and no other row is the same training with another seed."""
    training_key = _build_training_key(row)
    return (
        training_key is not None
        and len({_get_seed(other_row) for other_row in board.rows if _build_training_key(other_row) == training_key})
        < 2
    )


def _get_training(row: LeaderboardRow) -> dict[str, Any] | None:
    training: dict[str, Any] | None = row.model_card.get("training")
    return training


def _build_training_key(row: LeaderboardRow) -> str | None:
    """The identity of a training without its seed; None for a model without a training."""
    training = _get_training(row)
    if training is None:
        return None
    recipe = {key: value for key, value in complete_recipe(training["recipe"]).items() if key != "seed"}
    data = training["data"]
    return to_canonical_json(
        [row.label, row.model_card.get("parent"), recipe, data.get("set"), data.get("fingerprint")]
    )


def _get_seed(row: LeaderboardRow) -> Any:
    training = _get_training(row)
    return training["recipe"].get("seed") if training else None
