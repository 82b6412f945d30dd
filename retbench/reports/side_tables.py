"""The small tables below a leaderboard: trainings with several seeds, models with several prompts, kinds of rows.

Each format prints them in the same way: the first two columns are names, the others figures.
"""

from dataclasses import dataclass

from retbench.reports.board_notes import MISSING
from retbench.reports.kind_tables import build_kind_tables
from retbench.reports.leaderboard import Leaderboard
from retbench.reports.prompt_effects import build_prompt_table
from retbench.reports.seed_variation import list_seed_groups

SEED_RANGE_NOTE = "Over seeds: mean (lowest–highest). Differences within this range may be seed noise."


@dataclass(frozen=True)
class SideTable:
    """A table with its title, and the note that explains it."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def list_side_tables(board: Leaderboard) -> list[SideTable]:
    """The tables that have a row."""
    tables = [
        SideTable("Seeds", *_build_seed_table(board), SEED_RANGE_NOTE),
        SideTable("Prompts", *build_prompt_table(board)),
        *(SideTable(*parts) for parts in build_kind_tables(board)),
    ]
    return [table for table in tables if table.rows]


def _build_seed_table(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the trainings with several seeds: mean and range of each score."""
    seed_groups = list_seed_groups(board)
    columns = list(dict.fromkeys(column for group in seed_groups for column in group.score_ranges))
    heads = ["trained", "method", "seeds", *("average" if column is None else column for column in columns)]
    return heads, [
        [group.name, group.label, str(group.seeds), *(str(group.score_ranges.get(name, MISSING)) for name in columns)]
        for group in seed_groups
    ]
