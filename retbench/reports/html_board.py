"""The leaderboard of the HTML page as a table: rank, model, score with its interval, tasks, letters, costs.

The columns are those of every format (`table_cells.py`) in an order that a narrow screen can show: the model with its
method below it, then the main score with its interval drawn as a bar. Each row carries what the page's script filters
by.
"""

import hashlib
from html import escape

from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.short_names import cut_in_the_middle
from retbench.reports.svg_charts import get_colour
from retbench.reports.table_cells import INTERVAL_HEAD, LeaderboardTable, TableCell, TableLine

NAME_COLUMNS = 4  # rank, letters, model, method
MAX_NAME = 38  # longer names are cut
TEXT_HEADS = ("model", "method", "letters", "pair", "trained", "query")


def build_board(board: Leaderboard, table: LeaderboardTable) -> str:
    """The table of a leaderboard."""
    order = _order_columns(table.heads)
    heads = "".join(
        build_head(table.heads[column], f'<button type="button">{escape(table.heads[column])}</button>')
        for column in order
    )
    score_ranges = _get_score_ranges(table)
    bounds = _get_interval_bounds(board)
    rows = "".join(_build_row(board, table, line, order, score_ranges, bounds) for line in table.lines)
    return build_table_html("board", f"Leaderboard of {board.title}", heads, rows)


def build_head(name: str, inner: str = "") -> str:
    """The head of a column."""
    css_class = "text" if name in TEXT_HEADS else "number"
    return f'<th scope="col" class="{css_class}">{inner or escape(name)}</th>'


def build_table_html(css_class: str, name: str, heads: str, rows: str) -> str:
    """A table that scrolls inside its frame, below its heads."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table class="{css_class}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def build_anchor(run: ScoredRun) -> str:
    """The link target of a run: letters and digits only."""
    return f"run-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:12]}"


def _order_columns(heads: list[str]) -> list[int]:
    """Rank, model, scores, letters, costs; method and interval are shown inside of other columns."""
    interval = heads.index(INTERVAL_HEAD)
    return [0, 2, *range(NAME_COLUMNS, interval), 1, *range(interval + 1, len(heads))]


def _get_score_ranges(table: LeaderboardTable) -> dict[str, tuple[float, float]]:
    """The lowest and highest measured score of each task, for the cell colours."""
    scores_by_task: dict[str, list[float]] = {}
    for line in table.lines:
        for cell in line.cells:
            if cell.task is not None and isinstance(cell.value, float):
                scores_by_task.setdefault(cell.task, []).append(cell.value)
    return {task: (min(scores), max(scores)) for task, scores in scores_by_task.items()}


def _build_row(
    board: Leaderboard,
    table: LeaderboardTable,
    line: TableLine,
    order: list[int],
    score_ranges: dict[str, tuple[float, float]],
    bounds: tuple[float, float],
) -> str:
    cells = []
    for column in order:
        head, cell = table.heads[column], line.cells[column]
        value = "" if cell.value is None else escape(str(cell.value))
        css_class = "text" if head in TEXT_HEADS else "number"
        heat_style = _get_heat_style(cell, score_ranges)
        tag = 'th scope="row"' if head == "model" else "td"
        inner = _build_name(line) if head == "model" else _build_figure(board, line, cell)
        if column == NAME_COLUMNS:
            inner += _build_interval_bar(board, line, bounds)
        cells.append(
            f'<{tag} class="{css_class}{" heat" if heat_style else ""}" data-v="{value}"{heat_style}>'
            f"{inner}</{tag[:2]}>"
        )
    return f"<tr{_build_row_attributes(board, line)}>{''.join(cells)}</tr>"


def _build_row_attributes(board: Leaderboard, line: TableLine) -> str:
    """What the script filters by: method, family, parameters, and whether a collection was in the training data."""
    if line.row is None:
        return " class=published"
    card, exposures = line.row.model_card, {line.row.get_training_exposure(task) for task in board.tasks}
    facts = {
        "row": str(board.rows.index(line.row)),
        "method": line.row.method,
        "family": card.get("family") or ("lexical" if card.get("kind") == "lexical" else ""),
        "parameters": str(card.get("parameters") or ""),
        "exposure": next(kind for kind in ("seen", "unknown", "unseen") if kind in exposures),
    }
    return "".join(f' data-{name}="{escape(value)}"' for name, value in facts.items())


def _build_name(line: TableLine) -> str:
    """The model's name, cut in the middle if it is long, and the method below it."""
    model, method = line.cells[2], line.cells[3]
    dot = f'<i class="dot" style="background:{get_colour(line.row)}"></i>' if line.row else ""
    mark = f"<sup>{escape(model.mark)}</sup>" if model.mark else ""
    short, full = cut_in_the_middle(model.text, MAX_NAME), escape(f"{model.text} · {method.text}")
    return f'<span title="{full}">{dot}{escape(short)}{mark}<small>{escape(method.text)}</small></span>'


def _build_figure(board: Leaderboard, line: TableLine, cell: TableCell) -> str:
    mark = f"<sup>{escape(cell.mark)}</sup>" if cell.mark else ""
    inner = f'<span class="figure">{escape(cell.text)}</span>{mark}'
    if line.row and cell.task in line.row.runs:
        tip = escape(_format_tooltip(board, line.row, cell.task or ""))
        return f'<a href="#{build_anchor(line.row.runs[cell.task or ""])}" data-tip="{tip}">{inner}</a>'
    if line.row and cell.task in line.row.failures:
        return f'<span tabindex="0" data-tip="{escape(line.row.failures[cell.task or ""].error)}">{inner}</span>'
    return inner


def _get_heat_style(cell: TableCell, score_ranges: dict[str, tuple[float, float]]) -> str:
    if cell.task is None or not isinstance(cell.value, float):
        return ""
    low, high = score_ranges[cell.task]
    share = (cell.value - low) / (high - low) if high > low else 0.5
    return f' style="--heat:{100 * share:.0f}%"'


def _get_interval_bounds(board: Leaderboard) -> tuple[float, float]:
    """The lowest and the highest bound of all intervals of the main score."""
    intervals = [ranks[board.ranked_by].interval for ranks in board.ranks if board.ranked_by in ranks]
    return min((low for low, _ in intervals), default=0.0), max((high for _, high in intervals), default=1.0)


def _build_interval_bar(board: Leaderboard, line: TableLine, bounds: tuple[float, float]) -> str:
    """The 95% interval of the main score as a bar, on a line from the lowest to the highest bound of the board."""
    row_rank = board.get_rank(line.row, board.ranked_by) if line.row else None
    if row_rank is None:
        return ""
    (start, end), (low, high) = bounds, row_rank.interval
    tip = f"95% interval {100 * low:.1f} to {100 * high:.1f}"
    scale = 100 / (end - start) if end > start else 0.0
    style = f"--low:{(low - start) * scale:.1f}%;--size:{max((high - low) * scale, 2):.1f}%"
    return f'<i class="interval" tabindex="0" data-tip="{tip}" style="{style}"></i>'


def _format_tooltip(board: Leaderboard, row: LeaderboardRow, task: str) -> str:
    run, row_rank = row.runs[task], board.get_rank(row, task)
    text = f"{row.model} on {task}: {board.metric} {100 * run.score:.2f}"
    if row_rank:
        low, high = row_rank.interval
        text += f" (95% interval {100 * low:.1f} to {100 * high:.1f})"
        text += f", rank {row_rank.rank} of {row_rank.ranked_rows}"
        text += f", letters {row_rank.letters}" if row_rank.letters else ""
    exposure = row.get_training_exposure(task)
    return f"{text}; training data: {exposure}; {len(run.values):,} queries. Follow the link for the record."
