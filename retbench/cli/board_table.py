"""Leaderboards on a terminal: the columns that a reader needs first, as many as fit, and the notes below them."""

from textwrap import TextWrapper
from typing import TYPE_CHECKING

from retbench.cli.command import print_result
from retbench.cli.terminal_table import Column, Kind, get_terminal_width, print_table

if TYPE_CHECKING:
    from retbench.reports.leaderboard import Leaderboard
    from retbench.reports.table_cells import LeaderboardTable

DEFAULT_WIDTH = 100  # where `--format terminal` is asked for and stdout is no terminal
MIN_ROOM = 4  # before the columns of single tasks, whose room follows their order
NAME_COLUMNS = 2  # model and method, or a training and its method
ALWAYS = ("rank", "model", "method")
FIRST_OPTIONAL = {"95% interval": 1, "letters": 2, "mean rank": 3}
LAST_OPTIONAL = ("tokens/s", "parameters (M)", "bytes/doc", "docs/s", "peak memory (MB)", "weights (MB)", "active (M)",
                 "embedding (M)", "kWh per 1M docs")  # fmt: skip


def print_boards(boards: "list[Leaderboard]", with_ids: bool) -> None:
    """Print every leaderboard."""
    from retbench.reports.settings_ids import ID_HEADS, list_settings_ids
    from retbench.reports.side_tables import list_side_tables
    from retbench.reports.table_cells import build_table

    width = get_terminal_width() or DEFAULT_WIDTH
    for number, board in enumerate(boards):
        print_result(("\n" if number else "") + board.title)
        table = build_table(board)
        _print_fitted_table(_build_columns(board, table), width)
        for note in table.notes:
            _print_note(note, width)
        for side in list_side_tables(board):
            _print_plain_table(side.heads, side.rows, width, note=side.note)
        if with_ids:
            _print_ids(ID_HEADS, list_settings_ids(board), width)


def _build_columns(board: "Leaderboard", table: "LeaderboardTable") -> list[Column]:
    main = "average" if board.ranked_by is None else board.ranked_by
    rooms = {**dict.fromkeys((*ALWAYS, main), 0), **FIRST_OPTIONAL}
    costs = {head: len(table.heads) + MIN_ROOM + n for n, head in enumerate(LAST_OPTIONAL)}
    columns = []
    for position, head in enumerate(table.heads):
        kind: Kind = "name" if head in ("model", "method") else "text" if head == "letters" else "number"
        cells = [line.cells[position].text + line.cells[position].mark for line in table.lines]
        room = rooms.get(head, costs.get(head, MIN_ROOM + position))
        columns.append(Column(head, cells, room, kind))
    return columns


def _print_plain_table(heads: list[str], rows: list[list[str]], width: int, note: str = "") -> None:
    """Print a table that begins with the columns of names."""
    if not rows:
        return
    print_result("")
    columns = [
        Column(head, [row[at] for row in rows], max(0, at - NAME_COLUMNS), "name" if at < NAME_COLUMNS else "text")
        for at, head in enumerate(heads)
    ]
    _print_fitted_table(columns, width)
    if note:
        _print_note(note, width)


def _print_ids(heads: list[str], rows: list[list[str]], width: int) -> None:
    """Print a line per run; an id is there to be copied, so it is never left out."""
    print_result("")
    cells = [[row[at] for row in rows] for at in range(len(heads))]
    print_table([Column(heads[0], cells[0], kind="text"), *map(_build_name_column, heads[1:], cells[1:])], width)


def _build_name_column(head: str, cells: list[str]) -> Column:
    return Column(head, cells, kind="name")


def _print_fitted_table(columns: list[Column], width: int) -> None:
    """Print a table, and name the columns that found no room."""
    if hidden := print_table(columns, width):
        _print_note(f"No room for: {', '.join(hidden)}. A wider terminal or --format markdown has them.", width)


def _print_note(note: str, width: int) -> None:
    wrapper = TextWrapper(
        width, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    print_result(wrapper.fill(note))
