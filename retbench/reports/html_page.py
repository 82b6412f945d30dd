"""The HTML page: the whole report as one self-contained file that needs no network.

All main scores are in the markup, so the page can be read and printed without its script. The script sorts, filters,
switches metrics and columns, compares two rows query by query, and saves tables and charts. Names are untrusted input:
all text is escaped, and the page's content security policy allows only the script in this file.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from importlib.metadata import version as get_installed_version
from pathlib import Path

from retbench.records.scored_run import ScoredRun
from retbench.reports.board_notes import MISSING
from retbench.reports.html_board import build_anchor, build_board, build_head, build_table_html
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.page_data import write_page_data
from retbench.reports.ranks import ALPHA
from retbench.reports.reproduction import ReproductionTable
from retbench.reports.reproduction_html import TITLE as REPRODUCTION_TITLE
from retbench.reports.reproduction_html import build_reproduction_sections
from retbench.reports.side_tables import SideTable, list_side_tables
from retbench.reports.specialisation_deltas import SpecialisationDelta, compute_deltas
from retbench.reports.svg_charts import draw_cost_scatters, draw_histogram
from retbench.reports.table_cells import build_table

ASSETS = Path(__file__).parent / "assets"
FILTERS = {
    "method": ("Method", ()),
    "family": ("Family", ()),
    "parameters": ("Size", (("6e8", "up to 0.6B"), ("2e9", "up to 2B"), ("4e9", "up to 4B"), ("9e9", "up to 9B"))),
    "exposure": ("Training data", (("unseen", "task unseen"), ("seen", "task seen"), ("unknown", "not known"))),
}


TOOLS = (
    '<div class="tools"><label>Metric <select class="metric"></select></label>'
    '<details class="columns"><summary>Columns</summary></details><button type="button" class="csv">CSV</button></div>'
)
QUERY_TOOLS = (
    '<details class="queries"><summary>Compare two rows query by query</summary>'
    '<div class="tools"><label>Task <select class="task"></select></label><label>A <select class="a"></select></label>'
    '<label>B <select class="b"></select></label></div><div class="result"></div></details>'
)


def build_page(boards: list[Leaderboard], reproductions: list[ReproductionTable] | None = None) -> str:
    """The report as one HTML file; that of a study begins with the paper's figures beside ours."""
    style = (ASSETS / "board.css").read_text(encoding="utf-8")
    script = (ASSETS / "board.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script_hash}'; base-uri 'none'"
    )
    links = f'<a href="#reproduction">{escape(REPRODUCTION_TITLE)}</a>' if reproductions else ""
    links += "".join(
        f'<a href="#block-{number}">{escape(_format_title(board))}</a>' for number, board in enumerate(boards)
    )
    sections = build_reproduction_sections(reproductions or [])
    sections += "".join(_build_section(number, board) for number, board in enumerate(boards))
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
<header><h1>retbench</h1><nav aria-label="Leaderboards">{links}</nav>{_build_filters()}</header>
<main><p class="remarks">{escape(_describe_origin(boards))}</p>{sections}</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{write_page_data(boards)}</script>
<script>{script}</script>
</body>
</html>
"""


def _build_filters() -> str:
    """The search field, and a choice for each fact that rows are filtered by; the script fills in the names."""
    selects = "".join(
        f'<label>{label} <select data-filter="{name}"><option value="">all</option>'
        + "".join(f'<option value="{value}">{text}</option>' for value, text in options)
        + "</select></label>"
        for name, (label, options) in FILTERS.items()
    )
    search = '<input id="filter" type="search" placeholder="model or method  ( / )" autocomplete="off">'
    shown = '<output id="shown" for="filter"></output>'
    return f'<div class="filters"><label>Filter {search}</label>{selects}{shown}</div>'


def _describe_origin(boards: list[Leaderboard]) -> str:
    """The date of the newest run, the version that wrote the page, and the machines of the runs."""
    records = [run.record for board in boards for row in board.rows for run in row.runs.values()]
    newest = max((record.created for record in records), default="")[:10]
    machines = sorted({str(record.machine.get("gpu") or record.machine.get("cpu") or "unknown") for record in records})
    version = get_installed_version("retbench")
    return (
        f"{len(records):,} runs, the newest of {newest}. Page by retbench {version}. Machines: {', '.join(machines)}."
    )


def _format_title(board: Leaderboard) -> str:
    return (
        f"{board.title} (different {', different '.join(board.differing_rules)})"
        if board.differing_rules
        else board.title
    )


def _build_section(number: int, board: Leaderboard) -> str:
    table = build_table(board, with_members=True)
    parts = [f'<section id="block-{number}" data-board="{number}"><h2>{escape(_format_title(board))}</h2>', TOOLS]
    parts.append(build_board(board, table))
    parts.append('<ul class="remarks">' + "".join(f"<li>{escape(note)}</li>" for note in table.notes) + "</ul>")
    return "".join(
        [
            *parts,
            *map(_build_side_section, list_side_tables(board)),
            _build_chart_section(board),
            _build_delta_section(board),
            QUERY_TOOLS,
            _build_score_distributions(board),
            _build_record_section(board),
            "</section>",
        ]
    )


def _build_side_section(side: SideTable) -> str:
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{escape(figure)}</td>' for figure in figures)
        + "</tr>"
        for name, method, *figures in side.rows
    )
    table = build_table_html("deltas", side.title, "".join(map(build_head, side.heads)), lines)
    return f"<h3>{side.title}</h3><p>{escape(side.note)}</p>{table}"


def _build_chart_section(board: Leaderboard) -> str:
    charts = draw_cost_scatters(board)
    if not charts:
        return ""
    options = "".join(f'<option value="{name}">{escape(name.replace("_", " "))}</option>' for name in charts)
    figures = "".join(f'<figure data-cost="{name}">{chart}</figure>' for name, chart in charts.items())
    tools = f'<div class="tools"><label>Cost <select class="cost">{options}</select></label>'
    tools += '<button type="button" class="png">PNG</button></div>'
    return f"<h3>Quality against cost</h3>{tools}{figures}"


def _build_delta_section(board: Leaderboard) -> str:
    deltas = compute_deltas(board)
    if not deltas:
        return ""
    columns = list(dict.fromkeys(delta.task for delta in deltas))
    by_pair: dict[tuple[str, str], dict[str | None, str]] = {}
    for delta in deltas:
        pair = (f"{delta.child.model} − {delta.parent.model}", delta.child.label)
        by_pair.setdefault(pair, {})[delta.task] = _format_delta(delta)
    heads = "".join(map(build_head, ("pair", "method", *(column or "average" for column in columns))))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(pair)}</th><td class="text">{escape(method)}</td>'
        + "".join(f'<td class="number">{cells.get(column, MISSING)}</td>' for column in columns)
        + "</tr>"
        for (pair, method), cells in by_pair.items()
    )
    return (
        "<h3>Effect of specialisation</h3><p>Score of a model minus the score of its parent model. Bold: the "
        f"difference is significant (Holm's correction over {len(deltas)} differences).</p>"
        f"{build_table_html('deltas', 'Differences', heads, rows)}"
    )


def _format_delta(delta: SpecialisationDelta) -> str:
    low, high = delta.interval
    tip = f"95% {100 * low:+.1f} to {100 * high:+.1f}, p = {delta.p_value:.4f} after Holm's correction"
    figure = f"{100 * delta.difference:+.2f}".replace("-0.00", "+0.00")
    direction = "same" if figure == "+0.00" else "up" if delta.difference > 0 else "down"
    css_class = direction + (" sure" if delta.p_value <= ALPHA else "")
    return f'<span tabindex="0" class="{css_class}" data-tip="{tip}">{figure}</span>'


def _build_score_distributions(board: Leaderboard) -> str:
    heads = "".join(map(build_head, ("", *board.tasks)))
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(row.model)}<small>{escape(row.label)}</small></th>'
        + "".join(f"<td>{_draw_score_histogram(row, task)}</td>" for task in board.tasks)
        + "</tr>"
        for row in board.rows
        if row.runs
    )
    summary = f"<summary>Distribution of {escape(board.metric)} over queries</summary>"
    return f"<details>{summary}{build_table_html('spread', 'Spread', heads, rows)}</details>"


def _draw_score_histogram(row: LeaderboardRow, task: str) -> str:
    return draw_histogram(row.runs[task].values.tolist(), f"{row.model} on {task}") if task in row.runs else MISSING


def _build_record_section(board: Leaderboard) -> str:
    runs: Iterable[tuple[LeaderboardRow, str]] = (
        (row, task) for row in board.rows for task in board.tasks if task in row.runs
    )
    records = [_build_record(row, row.runs[task]) for row, task in runs]
    return f"<details class=records><summary>Records of the {len(records):,} runs</summary>{''.join(records)}</details>"


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
        f'<details class="record" id="{build_anchor(run)}"><summary>{escape(row.model)} · {escape(row.label)} · '
        f"{escape(record.task)} <small>{escape(record.settings_id)}, {escape(record.created)}</small></summary>"
        f"<p>Command: <code>{escape(record.command)}</code></p><dl>{scores}</dl><pre>{details}</pre></details>"
    )
