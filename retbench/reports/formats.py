"""Leaderboards as markdown, LaTeX and CSV. Names are untrusted input, so each format escapes them."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

from retbench.reports.leaderboard import Leaderboard
from retbench.reports.settings_ids import ID_HEADS, list_settings_ids
from retbench.reports.side_tables import list_side_tables
from retbench.reports.table_cells import COST_COLUMNS, LeaderboardTable, TableCell, TableLine, build_table

LEFT_ALIGNED_HEADS = ("model", "method", "letters")
COST_HEADS = {head for head, _, _ in COST_COLUMNS.values()}


def format_markdown(boards: list[Leaderboard], with_ids: bool = False) -> str:
    """All leaderboards as markdown, one table each."""
    return "\n".join(
        _format_markdown_table(board.title, build_table(board))
        + "".join(_format_markdown_names(side.heads, side.rows, side.note) for side in list_side_tables(board))
        + (_format_markdown_names(ID_HEADS, list_settings_ids(board)) if with_ids else "")
        for board in boards
    )


def _format_markdown_table(title: str, table: LeaderboardTable) -> str:
    alignment = "|".join("---" if head in LEFT_ALIGNED_HEADS else "---:" for head in table.heads)
    lines = [
        f"## {escape_markdown(title)}",
        "",
        "| " + " | ".join(map(escape_markdown, table.heads)) + " |",
        f"|{alignment}|",
    ]
    lines += [
        "| " + " | ".join(escape_markdown(cell.text + cell.mark) for cell in line.cells) + " |" for line in table.lines
    ]
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in table.notes), ""])


def _format_markdown_names(heads: list[str], rows: list[list[str]], note: str = "") -> str:
    """A table whose first two columns are names."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (heads, *rows)]
    alignment = "|---|---|" + "---:|" * (len(heads) - 2)
    return "\n".join(["", lines[0], alignment, *lines[1:], "", *([f"- {escape_markdown(note)}", ""] if note else [])])


def escape_markdown(text: str) -> str:
    """Escape text so that it cannot break a markdown table or add markup."""
    printable = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    printable = printable.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", printable)


def format_latex(boards: list[Leaderboard], with_ids: bool = False) -> str:
    """All leaderboards as LaTeX booktabs tables."""
    tables = [
        table
        for board in boards
        for table in (
            _format_latex_table(board.title, build_table(board)),
            *(_format_latex_names(side.heads, side.rows, escape_latex(side.note)) for side in list_side_tables(board)),
            _format_latex_names(ID_HEADS, list_settings_ids(board), caption="Settings-ids.") if with_ids else "",
        )
        if table
    ]
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables]) + "\n"


def _format_latex_table(title: str, table: LeaderboardTable) -> str:
    """The scores as one table and the costs as a second one: side by side they are wider than a page."""
    costs = [at for at, head in enumerate(table.heads) if head in COST_HEADS]
    scores = [at for at in range(len(table.heads)) if at not in costs]
    names = [table.heads.index("model"), table.heads.index("method")]
    notes = " ".join(map(escape_latex, table.notes))
    tables = [_format_latex_columns(table, scores, f"{escape_latex(title)}. {notes}")]
    if costs:
        measured = replace(table, lines=[line for line in table.lines if line.row])  # published rows have no costs
        tables.append(_format_latex_columns(measured, names + costs, f"{escape_latex(title)}: size, speed and memory."))
    return "\n\n".join(tables)


def _format_latex_columns(table: LeaderboardTable, positions: list[int], caption: str) -> str:
    """Some columns of a table; published rows stand below a rule."""
    heads = [table.heads[at] for at in positions]
    measured = [_format_latex_line(line, positions) for line in table.lines if line.row]
    published = [_format_latex_line(line, positions) for line in table.lines if line.published]
    body = [*measured, *(["\\midrule"] if measured and published else []), *published]
    return _wrap_latex("".join("l" if head in LEFT_ALIGNED_HEADS else "r" for head in heads), heads, body, caption)


def _format_latex_names(heads: list[str], rows: list[list[str]], caption: str) -> str:
    if not rows:
        return ""
    return _wrap_latex("ll" + "r" * (len(heads) - 2), heads, list(map(_join_latex, rows)), caption)


def _wrap_latex(alignment: str, heads: list[str], body: list[str], caption: str) -> str:
    """A table environment of finished lines."""
    begin = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{alignment}}}", "\\toprule"]
    end = ["\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}"]
    return "\n".join([*begin, _join_latex(heads), "\\midrule", *body, *end])


def _format_latex_line(line: TableLine, positions: list[int]) -> str:
    return _join_latex(line.cells[at].text + line.cells[at].mark for at in positions)


def _join_latex(texts: Iterable[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + " \\\\"


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$",
    "†": r"\textdagger{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Escape text so that it cannot break a LaTeX table or add a command."""
    return "".join(LATEX_ESCAPES.get(char, char if char.isprintable() else " ") for char in text)


def format_csv(boards: list[Leaderboard], with_ids: bool = False) -> str:
    """All leaderboards as one CSV table: scores times 100, a column `TASK seen` per task, and one with its id."""
    tables = [(board, build_table(board, with_members=True)) for board in boards]
    scores = {task: None for board, _ in tables for task in board.tasks}
    heads = dict.fromkeys(chain.from_iterable(table.heads for _, table in tables))
    exposure_columns = [f"{task} seen" for task in scores]
    id_columns = [f"{task} settings-id" for task in scores] if with_ids else []
    file = io.StringIO()
    columns = ["suite", "block", *heads, *exposure_columns, *id_columns, "published"]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writerow({column: quote_formula(column) for column in columns})
    for number, (board, table) in enumerate(tables, start=1):
        for line in table.lines:
            facts = {head: format_csv_value(cell) for head, cell in zip(table.heads, line.cells, strict=True)}
            if line.row:
                facts |= {f"{task} seen": line.row.get_training_exposure(task) for task in line.row.runs}
                if with_ids:
                    facts |= {f"{task} settings-id": run.record.settings_id for task, run in line.row.runs.items()}
            source = line.published.table.source if line.published else ""
            writer.writerow(
                {"suite": quote_formula(board.suite), "block": number, **facts, "published": quote_formula(source)}
            )
    return file.getvalue()


def format_csv_value(cell: TableCell) -> str:
    """A value as a CSV field."""
    if cell.value is None:
        return "" if cell.text == "–" else cell.text
    if isinstance(cell.value, float):
        return f"{cell.value:.6g}"
    return quote_formula(str(cell.value))


def quote_formula(text: str) -> str:
    """A name that a spreadsheet would run as a formula gets a leading quote."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


FORMATTERS: dict[str, Callable[[list[Leaderboard], bool], str]] = {
    "markdown": format_markdown,
    "latex": format_latex,
    "csv": format_csv,
}
