"""Tables that fit the terminal: long names are cut in the middle, and columns that find no room are named below.

A table in a pipe or a file has no width, so everything is printed. rich alone would fold a name letter by letter.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retbench.cli.terminal_text import build_table_cell, remove_control_characters
from retbench.reports.short_names import cut_in_the_middle

Kind = Literal["number", "text", "name", "prose"]  # a name may be cut in the middle, prose at its end
GAP = 2  # spaces between two columns
MIN_NAME_WIDTH = 18  # a name is not cut below this


@dataclass(frozen=True)
class Column:
    """A column of a table. `room` orders the columns that may be left out: the largest first, 0 never."""

    head: str
    cells: Sequence[str]
    room: int = 0
    kind: Kind = "number"

    @property
    def width(self) -> int:
        """The width of its longest text."""
        return max(map(len, (self.head, *self.cells)))

    @property
    def min_width(self) -> int:
        """The width that it needs at least."""
        is_cut = self.kind in ("name", "prose")
        return min(self.width, max(MIN_NAME_WIDTH, len(self.head))) if is_cut else self.width

    def fit(self, text: str, width: int) -> str:
        """Cut a text to a width."""
        if self.kind == "prose" and len(text) > width:
            return f"{text[: width - 1].rstrip()}…"
        return cut_in_the_middle(text, width)


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out columns, those with the largest `room` first, until the others fit."""
    shown = list(columns)
    while _sum_widths([column.min_width for column in shown]) > width:
        optional = [column for column in shown if column.room]
        if not optional:
            break
        last = max(reversed(optional), key=lambda column: column.room)
        shown = [column for column in shown if column is not last]
    return shown


def compute_widths(columns: Sequence[Column], width: int) -> list[int]:
    """Give each name what it needs; while the table is too wide, the widest name gets one less."""
    widths = [column.width for column in columns]
    while _sum_widths(widths) > width:
        spare = [n for n, column in enumerate(columns) if widths[n] > column.min_width]
        if not spare:
            break
        widths[max(spare, key=lambda n: widths[n])] -= 1
    return widths


def _sum_widths(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(0, len(widths) - 1)


def get_terminal_width() -> int | None:
    """Return the width of the terminal that stdout is; None for a pipe or a file."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """Print a table on stdout within a width (default: the terminal's), and return the heads that found no room."""
    from rich.console import Console
    from rich.table import Table

    width = width or get_terminal_width()
    columns = [_clean(column) for column in columns]
    full = _sum_widths([column.width for column in columns])
    shown = choose_columns(columns, width or full)
    widths = compute_widths(shown, width or full)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    for column, length in zip(shown, widths, strict=True):
        table.add_column(
            build_table_cell(column.head),
            justify="right" if column.kind == "number" else "left",
            no_wrap=True,
            width=length,
        )
    for cells in zip(*(column.cells for column in shown), strict=True):
        fitted = (column.fit(text, length) for column, text, length in zip(shown, cells, widths, strict=True))
        table.add_row(*map(build_table_cell, fitted))
    Console(width=max(full, width or 0) + GAP, highlight=False).print(table)
    return [column.head for column in columns if column not in shown]


def _clean(column: Column) -> Column:
    return replace(column, head=_flatten(column.head), cells=[_flatten(text) for text in column.cells])


def _flatten(text: str) -> str:
    return remove_control_characters(" ".join(text.split()))


def describe_hidden(heads: Sequence[str], where: str) -> str:
    """Say which columns found no room, and where they are."""
    return f"no room for: {', '.join(heads)} ({where})"
