"""The page: the whole report as one HTML file that asks nobody for anything.

Every figure is in the markup, so the page can be read and printed without script; the script sorts, filters and shows
what lies behind a number. Names come from strangers: all text is escaped, and the page's own policy lets no other
script run than the one written here.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from retbench.records.scored_run import Kept
from retbench.reports.leaderboard import Block, Row
from retbench.reports.ranks import ALPHA
from retbench.reports.specialisation_deltas import Delta, deltas
from retbench.reports.svg_charts import colour, histogram, scatters
from retbench.reports.table_cells import NOTHING, SPREAD, Cell, Grid, Line, grid, over_seeds

ASSETS = Path(__file__).parent / "assets"
TEXT_HEADS = ("model", "method", "letters", "pair", "trained")


def page(blocks: list[Block]) -> str:
    """The report as one file."""
    style = (ASSETS / "board.css").read_text(encoding="utf-8")
    script = (ASSETS / "board.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'"
    )
    links = "".join(f'<a href="#block-{number}">{escape(_title(block))}</a>' for number, block in enumerate(blocks))
    body = "".join(_block(number, block) for number, block in enumerate(blocks))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>retbench: {escape(", ".join(dict.fromkeys(block.title for block in blocks)))}</title>
<style>{style}</style>
</head>
<body>
<header><h1>retbench</h1><nav aria-label="Blocks">{links}</nav>
<label>Filter <input id="filter" type="search" placeholder="model or method  ( / )" autocomplete="off"></label>
<output id="shown" for="filter"></output></header>
<main>{body}</main>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def _head(name: str, inner: str = "") -> str:
    kind = "text" if name in TEXT_HEADS else "number"
    return f'<th scope="col" class="{kind}">{inner or escape(name)}</th>'


def _table(kind: str, name: str, heads: str, rows: str) -> str:
    """A table that scrolls by itself where the window is too narrow."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table class="{kind}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _title(block: Block) -> str:
    return f"{block.title} (another {', another '.join(block.apart)})" if block.apart else block.title


def _block(number: int, block: Block) -> str:
    table = grid(block, members=True)
    parts = [f'<section id="block-{number}"><h2>{escape(_title(block))}</h2>', _board(block, table)]
    parts.append('<ul class="remarks">' + "".join(f"<li>{escape(remark)}</li>" for remark in table.remarks) + "</ul>")
    return "".join(
        [*parts, _seeds(block), _pictures(block), _deltas(block), _spread(block), _records(block), "</section>"]
    )


def _board(block: Block, table: Grid) -> str:
    heads = "".join(_head(head, f'<button type="button">{escape(head)}</button>') for head in table.heads)
    reach = _reach(table)
    rows = "".join(_line(block, table, line, reach) for line in table.lines)
    return _table("board", f"Board of {block.title}", heads, rows)


def _reach(table: Grid) -> dict[str, tuple[float, float]]:
    """The lowest and highest score of our rows in each task's column, for the heat."""
    values: dict[str, list[float]] = {}
    for line in table.lines:
        for cell in line.cells:
            if cell.task is not None and isinstance(cell.value, float):
                values.setdefault(cell.task, []).append(cell.value)
    return {task: (min(found), max(found)) for task, found in values.items()}


def _line(block: Block, table: Grid, line: Line, reach: dict[str, tuple[float, float]]) -> str:
    cells = []
    for head, cell in zip(table.heads, line.cells, strict=True):
        value = "" if cell.value is None else escape(str(cell.value))
        kind = "text" if head in TEXT_HEADS else "number"
        heat = _heat(cell, reach)
        inner = escape(cell.text) + (f"<sup>{escape(cell.mark)}</sup>" if cell.mark else "")
        if line.row and head == "model":
            inner = f'<i class="dot" style="background:{colour(line.row)}"></i>{inner}'
        if line.row and cell.task in line.row.runs:
            tip = escape(_tip(block, line.row, cell.task or ""))
            inner = f'<a href="#{_anchor(line.row.runs[cell.task or ""])}" data-tip="{tip}">{inner}</a>'
        elif line.row and cell.task in line.row.failures:
            inner = f'<span tabindex="0" data-tip="{escape(line.row.failures[cell.task or ""].error)}">{inner}</span>'
        tag = 'th scope="row"' if head == "model" else "td"
        cells.append(f'<{tag} class="{kind}{" heat" if heat else ""}" data-v="{value}"{heat}>{inner}</{tag[:2]}>')
    return f"<tr{'' if line.row else ' class=published'}>{''.join(cells)}</tr>"


def _heat(cell: Cell, reach: dict[str, tuple[float, float]]) -> str:
    if cell.task is None or not isinstance(cell.value, float):
        return ""
    low, high = reach[cell.task]
    share = (cell.value - low) / (high - low) if high > low else 0.5
    return f' style="--heat:{100 * share:.0f}%"'


def _tip(block: Block, row: Row, task: str) -> str:
    run, place = row.runs[task], block.place(row, task)
    text = f"{row.model} on {task}: {block.metric} {100 * run.score:.2f}"
    if place:
        low, high = place.interval
        text += (
            f" (95% {100 * low:.1f} to {100 * high:.1f}), rank {place.rank} of {place.rivals}, letters {place.letters}"
        )
    return f"{text}; training data: {row.seen(task)}; {len(run.values):,} queries. Follow the link for the record."


def _anchor(run: Kept) -> str:
    """A fragment made of letters and digits only, one a run."""
    return f"run-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:12]}"


def _seeds(block: Block) -> str:
    heads, rows = over_seeds(block)
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{escape(figure)}</td>' for figure in figures)
        + "</tr>"
        for name, method, *figures in rows
    )
    return f"<h3>Seeds</h3><p>{SPREAD}</p>{_table('deltas', 'Seeds', ''.join(map(_head, heads)), lines)}"


def _pictures(block: Block) -> str:
    pictures = scatters(block)
    if not pictures:
        return ""
    options = "".join(f'<option value="{name}">{escape(name.replace("_", " "))}</option>' for name in pictures)
    figures = "".join(f'<figure data-cost="{name}">{picture}</figure>' for name, picture in pictures.items())
    return f"<h3>Quality against cost</h3><label>Cost <select class=cost>{options}</select></label>{figures}"


def _deltas(block: Block) -> str:
    found = deltas(block)
    if not found:
        return ""
    goals = list(dict.fromkeys(one.task for one in found))
    by_pair: dict[tuple[str, str], dict[str | None, str]] = {}
    for one in found:
        pair = (f"{one.child.model} − {one.parent.model}", one.child.label)
        by_pair.setdefault(pair, {})[one.task] = _difference(one)
    heads = "".join(map(_head, ("pair", "method", *(goal or "average" for goal in goals))))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(pair)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{cells.get(goal, NOTHING)}</td>' for goal in goals)
        + "</tr>"
        for (pair, method), cells in by_pair.items()
    )
    return (
        "<h3>What specialisation does</h3><p>A model minus the model it was made from; bold where the difference is "
        f"significant (Holm over {len(found)} differences).</p>{_table('deltas', 'Differences', heads, rows)}"
    )


def _difference(one: Delta) -> str:
    low, high = one.interval
    tip = f"95% {100 * low:+.1f} to {100 * high:+.1f}, p = {one.p_value:.4f} after Holm's correction"
    kind = ("up" if one.difference > 0 else "down") + (" sure" if one.p_value <= ALPHA else "")
    return f'<span tabindex="0" class="{kind}" data-tip="{tip}">{100 * one.difference:+.2f}</span>'


def _spread(block: Block) -> str:
    heads = "".join(map(_head, ("", *block.tasks)))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(row.model)}<small>{escape(row.label)}</small></th>'
        + "".join(f"<td>{_bars(row, task)}</td>" for task in block.tasks)
        + "</tr>"
        for row in block.rows
        if row.runs
    )
    summary = f"<summary>How {escape(block.metric)} spreads over queries</summary>"
    return f"<details>{summary}{_table('spread', 'Spread', heads, rows)}</details>"


def _bars(row: Row, task: str) -> str:
    return histogram(row.runs[task].values.tolist(), f"{row.model} on {task}") if task in row.runs else NOTHING


def _records(block: Block) -> str:
    runs: Iterable[tuple[Row, str]] = ((row, task) for row in block.rows for task in block.tasks if task in row.runs)
    return f"<h3>Records</h3>{''.join(_record(row, row.runs[task]) for row, task in runs)}"


def _record(row: Row, run: Kept) -> str:
    record = run.record
    facts = {
        "settings": record.settings,
        "collection": record.collection,
        "cost": record.cost,
        "machine": record.machine,
    }
    stated = escape(json.dumps(facts, indent=1, ensure_ascii=False))
    scores = "".join(f"<dt>{escape(name)}</dt><dd>{100 * score:.2f}</dd>" for name, score in record.scores.items())
    return (
        f'<details class="record" id="{_anchor(run)}"><summary>{escape(row.model)} · {escape(row.label)} · '
        f"{escape(record.task)} <small>{escape(record.settings_id)}, {escape(record.created)}</small></summary>"
        f"<p>Made by <code>{escape(record.command)}</code></p><dl>{scores}</dl><pre>{stated}</pre></details>"
    )
