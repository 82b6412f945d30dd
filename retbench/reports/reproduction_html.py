"""A paper's figures beside ours in the HTML page: the tables of `reproduction.py`, with each verdict marked."""

from html import escape

from retbench.reports.html_board import build_table_html
from retbench.reports.reproduction import ReproducedRow, ReproductionTable

TITLE = "The paper's figures and ours"


def build_reproduction_sections(tables: list[ReproductionTable]) -> str:
    """All tables, one below the other; nothing if there is none."""
    if not tables:
        return ""
    return f'<section id="reproduction"><h2>{escape(TITLE)}</h2>{"".join(map(_build_table, tables))}</section>'


def _build_table(table: ReproductionTable) -> str:
    heads, lines = table.format_lines()
    kinds = ["text", "text", *("number" for _ in table.columns), "text"]
    head_cells = "".join(
        f'<th scope="col" class="{kind}">{escape(head)}</th>' for kind, head in zip(kinds, heads, strict=True)
    )
    rows = "".join(_build_row(row, line, kinds) for row, line in zip(table.rows, lines, strict=True))
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.describe())
    title = table.table.title
    grid = build_table_html("deltas", title, head_cells, rows)
    return f'<h3>{escape(title)}</h3>{grid}<ul class="remarks">{notes}</ul>'


def _build_row(row: ReproducedRow, line: list[str], kinds: list[str]) -> str:
    name, *cells = line
    verdicts = {figure.verdict for figure in row.figures} if row.cells else set()
    mark = " down" if "outside" in verdicts else " up" if verdicts == {"within tolerance"} else ""
    classes = [*kinds[1:-1], f"{kinds[-1]}{mark}"]
    return (
        f'<tr><th scope="row" class="text">{escape(name)}</th>'
        + "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(classes, cells, strict=True))
        + "</tr>"
    )
