"""The HTML page: the whole report as one self-contained file that needs no network.

All scores are in the markup, so the page can be read and printed without its script. The script sorts, filters and
shows the details of a score. Names are untrusted input: all text is escaped, and the page's content security policy
allows only the script in this file.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.ranks import ALPHA
from retbench.reports.specialisation_deltas import SpecialisationDelta, compute_deltas
from retbench.reports.svg_charts import draw_cost_scatters, draw_histogram, get_colour
from retbench.reports.table_cells import (
    MISSING,
    SEED_RANGE_NOTE,
    LeaderboardTable,
    TableCell,
    TableLine,
    build_seed_table,
    build_table,
)

ASSETS = Path(__file__).parent / "assets"
TEXT_HEADS = ("model", "method", "letters", "pair", "trained")


def build_page(boards: list[Leaderboard]) -> str:
    """The report as one HTML file."""
    style = (ASSETS / "board.css").read_text(encoding="utf-8")
    script = (ASSETS / "board.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script_hash}'; base-uri 'none'"
    )
    links = "".join(
        f'<a href="#block-{number}">{escape(_format_title(board))}</a>' for number, board in enumerate(boards)
    )
    sections = "".join(_build_section(number, board) for number, board in enumerate(boards))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>retbench: {escape(", ".join(dict.fromkeys(board.title for board in boards)))}</title>
<style>{style}</style>
</head>
<body>
<header><h1>retbench</h1><nav aria-label="Leaderboards">{links}</nav>
<label>Filter <input id="filter" type="search" placeholder="model or method  ( / )" autocomplete="off"></label>
<output id="shown" for="filter"></output></header>
<main>{sections}</main>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def _build_head(name: str, inner: str = "") -> str:
    css_class = "text" if name in TEXT_HEADS else "number"
    return f'<th scope="col" class="{css_class}">{inner or escape(name)}</th>'


def _build_table_html(css_class: str, name: str, heads: str, rows: str) -> str:
    """A table that scrolls sideways in a narrow window."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table class="{css_class}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _format_title(board: Leaderboard) -> str:
    return (
        f"{board.title} (different {', different '.join(board.differing_rules)})"
        if board.differing_rules
        else board.title
    )


def _build_section(number: int, board: Leaderboard) -> str:
    table = build_table(board, with_members=True)
    parts = [f'<section id="block-{number}"><h2>{escape(_format_title(board))}</h2>', _build_board(board, table)]
    parts.append('<ul class="remarks">' + "".join(f"<li>{escape(note)}</li>" for note in table.notes) + "</ul>")
    return "".join(
        [
            *parts,
            _build_seed_section(board),
            _build_chart_section(board),
            _build_delta_section(board),
            _build_score_distributions(board),
            _build_record_section(board),
            "</section>",
        ]
    )


def _build_board(board: Leaderboard, table: LeaderboardTable) -> str:
    heads = "".join(_build_head(head, f'<button type="button">{escape(head)}</button>') for head in table.heads)
    score_ranges = _get_score_ranges(table)
    rows = "".join(_build_row(board, table, line, score_ranges) for line in table.lines)
    return _build_table_html("board", f"Leaderboard of {board.title}", heads, rows)


def _get_score_ranges(table: LeaderboardTable) -> dict[str, tuple[float, float]]:
    """The lowest and highest measured score of each task, for the cell colours."""
    scores_by_task: dict[str, list[float]] = {}
    for line in table.lines:
        for cell in line.cells:
            if cell.task is not None and isinstance(cell.value, float):
                scores_by_task.setdefault(cell.task, []).append(cell.value)
    return {task: (min(scores), max(scores)) for task, scores in scores_by_task.items()}


def _build_row(
    board: Leaderboard, table: LeaderboardTable, line: TableLine, score_ranges: dict[str, tuple[float, float]]
) -> str:
    cells = []
    for head, cell in zip(table.heads, line.cells, strict=True):
        value = "" if cell.value is None else escape(str(cell.value))
        css_class = "text" if head in TEXT_HEADS else "number"
        heat_style = _get_heat_style(cell, score_ranges)
        inner = escape(cell.text) + (f"<sup>{escape(cell.mark)}</sup>" if cell.mark else "")
        if line.row and head == "model":
            inner = f'<i class="dot" style="background:{get_colour(line.row)}"></i>{inner}'
        if line.row and cell.task in line.row.runs:
            tip = escape(_format_tooltip(board, line.row, cell.task or ""))
            inner = f'<a href="#{_build_anchor(line.row.runs[cell.task or ""])}" data-tip="{tip}">{inner}</a>'
        elif line.row and cell.task in line.row.failures:
            inner = f'<span tabindex="0" data-tip="{escape(line.row.failures[cell.task or ""].error)}">{inner}</span>'
        tag = 'th scope="row"' if head == "model" else "td"
        cells.append(
            f'<{tag} class="{css_class}{" heat" if heat_style else ""}" data-v="{value}"{heat_style}>'
            f"{inner}</{tag[:2]}>"
        )
    return f"<tr{'' if line.row else ' class=published'}>{''.join(cells)}</tr>"


def _get_heat_style(cell: TableCell, score_ranges: dict[str, tuple[float, float]]) -> str:
    if cell.task is None or not isinstance(cell.value, float):
        return ""
    low, high = score_ranges[cell.task]
    share = (cell.value - low) / (high - low) if high > low else 0.5
    return f' style="--heat:{100 * share:.0f}%"'


def _format_tooltip(board: Leaderboard, row: LeaderboardRow, task: str) -> str:
    run, row_rank = row.runs[task], board.get_rank(row, task)
    text = f"{row.model} on {task}: {board.metric} {100 * run.score:.2f}"
    if row_rank:
        low, high = row_rank.interval
        text += f" (95% interval {100 * low:.1f} to {100 * high:.1f})"
        text += f", rank {row_rank.rank} of {row_rank.ranked_rows}, letters {row_rank.letters}"
    exposure = row.get_training_exposure(task)
    return f"{text}; training data: {exposure}; {len(run.values):,} queries. Follow the link for the record."


def _build_anchor(run: ScoredRun) -> str:
    """The link target of a run: letters and digits only."""
    return f"run-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:12]}"


def _build_seed_section(board: Leaderboard) -> str:
    heads, rows = build_seed_table(board)
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{escape(figure)}</td>' for figure in figures)
        + "</tr>"
        for name, method, *figures in rows
    )
    table = _build_table_html("deltas", "Seeds", "".join(map(_build_head, heads)), lines)
    return f"<h3>Seeds</h3><p>{SEED_RANGE_NOTE}</p>{table}"


def _build_chart_section(board: Leaderboard) -> str:
    charts = draw_cost_scatters(board)
    if not charts:
        return ""
    options = "".join(f'<option value="{name}">{escape(name.replace("_", " "))}</option>' for name in charts)
    figures = "".join(f'<figure data-cost="{name}">{chart}</figure>' for name, chart in charts.items())
    return f"<h3>Quality against cost</h3><label>Cost <select class=cost>{options}</select></label>{figures}"


def _build_delta_section(board: Leaderboard) -> str:
    deltas = compute_deltas(board)
    if not deltas:
        return ""
    columns = list(dict.fromkeys(delta.task for delta in deltas))
    by_pair: dict[tuple[str, str], dict[str | None, str]] = {}
    for delta in deltas:
        pair = (f"{delta.child.model} − {delta.parent.model}", delta.child.label)
        by_pair.setdefault(pair, {})[delta.task] = _format_delta(delta)
    heads = "".join(map(_build_head, ("pair", "method", *(column or "average" for column in columns))))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(pair)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{cells.get(column, MISSING)}</td>' for column in columns)
        + "</tr>"
        for (pair, method), cells in by_pair.items()
    )
    return (
        "<h3>Effect of specialisation</h3><p>Score of a model minus the score of its parent model. Bold: the "
        f"difference is significant (Holm's correction over {len(deltas)} differences).</p>"
        f"{_build_table_html('deltas', 'Differences', heads, rows)}"
    )


def _format_delta(delta: SpecialisationDelta) -> str:
    low, high = delta.interval
    tip = f"95% {100 * low:+.1f} to {100 * high:+.1f}, p = {delta.p_value:.4f} after Holm's correction"
    css_class = ("up" if delta.difference > 0 else "down") + (" sure" if delta.p_value <= ALPHA else "")
    return f'<span tabindex="0" class="{css_class}" data-tip="{tip}">{100 * delta.difference:+.2f}</span>'


def _build_score_distributions(board: Leaderboard) -> str:
    heads = "".join(map(_build_head, ("", *board.tasks)))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(row.model)}<small>{escape(row.label)}</small></th>'
        + "".join(f"<td>{_draw_score_histogram(row, task)}</td>" for task in board.tasks)
        + "</tr>"
        for row in board.rows
        if row.runs
    )
    summary = f"<summary>Distribution of {escape(board.metric)} over queries</summary>"
    return f"<details>{summary}{_build_table_html('spread', 'Spread', heads, rows)}</details>"


def _draw_score_histogram(row: LeaderboardRow, task: str) -> str:
    return draw_histogram(row.runs[task].values.tolist(), f"{row.model} on {task}") if task in row.runs else MISSING


def _build_record_section(board: Leaderboard) -> str:
    runs: Iterable[tuple[LeaderboardRow, str]] = (
        (row, task) for row in board.rows for task in board.tasks if task in row.runs
    )
    return f"<h3>Records</h3>{''.join(_build_record(row, row.runs[task]) for row, task in runs)}"


def _build_record(row: LeaderboardRow, run: ScoredRun) -> str:
    record = run.record
    facts = {
        "settings": record.settings,
        "collection": record.collection,
        "cost": record.cost,
        "machine": record.machine,
    }
    details = escape(json.dumps(facts, indent=1, ensure_ascii=False))
    scores = "".join(f"<dt>{escape(name)}</dt><dd>{100 * score:.2f}</dd>" for name, score in record.scores.items())
    return (
        f'<details class="record" id="{_build_anchor(run)}"><summary>{escape(row.model)} · {escape(row.label)} · '
        f"{escape(record.task)} <small>{escape(record.settings_id)}, {escape(record.created)}</small></summary>"
        f"<p>Command: <code>{escape(record.command)}</code></p><dl>{scores}</dl><pre>{details}</pre></details>"
    )
