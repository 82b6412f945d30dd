"""Seeds: a trained model is one draw. Until its recipe was run with another seed, a difference may be the draw's."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retbench.reports.leaderboard import Block, Row
from retbench.store.digest import to_canonical_json

ONE_SEED = "‡"


@dataclass(frozen=True)
class Spread:
    """One score over the seeds of a training."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ({100 * self.low:.2f}–{100 * self.high:.2f})"


@dataclass(frozen=True)
class Draws:
    """A training that was run with several seeds: its rows, and mean and range of every score all of them have."""

    name: str
    label: str
    seeds: int
    spreads: dict[str | None, Spread]  # by task or group; None is the average


def draws(block: Block) -> list[Draws]:
    """Every training of a block with two seeds or more, best first."""
    courses: dict[str, list[Row]] = {}
    for row in block.rows:
        if (course := _course(row)) is not None:
            courses.setdefault(course, []).append(row)
    return [_draws(block, rows) for rows in courses.values() if len({_seed(row) for row in rows}) > 1]


def _draws(block: Block, rows: list[Row]) -> Draws:
    goals: list[str | None] = [*([None] if block.goal is None else []), *block.entries]
    spreads = {}
    for goal in goals:
        scores = [score for row in rows if (score := block.score(row, goal)) is not None]
        if len(scores) == len(rows):
            spreads[goal] = Spread(fmean(scores), min(scores), max(scores))
    training = _training(rows[0]) or {}
    made = (
        f"{rows[0].card.get('parent')} on {training['data'].get('set')} by {training['recipe'].get('name', 'adaptor')}"
    )
    return Draws(made, rows[0].label, len({_seed(row) for row in rows}), spreads)


def one_seed(block: Block, row: Row) -> bool:
    """Whether a row's model was trained, and no other row of the block is the same training with another seed."""
    own = _course(row)
    return own is not None and len({_seed(other) for other in block.rows if _course(other) == own}) < 2


def _training(row: Row) -> dict[str, Any] | None:
    found: dict[str, Any] | None = row.card.get("training")
    return found


def _course(row: Row) -> str | None:
    """Everything about a training but its seed."""
    training = _training(row)
    if training is None:
        return None
    recipe = {key: value for key, value in training["recipe"].items() if key != "seed"}
    data = training["data"]
    return to_canonical_json([row.label, row.card.get("parent"), recipe, data.get("set"), data.get("fingerprint")])


def _seed(row: Row) -> Any:
    training = _training(row)
    return training["recipe"].get("seed") if training else None
