"""The board as markdown, LaTeX and CSV. Names come from strangers: each format escapes them in its own way."""

import csv
import io
import re
from collections.abc import Callable
from itertools import chain

from retbench.reports.leaderboard import Block
from retbench.reports.table_cells import SPREAD, Cell, Grid, Line, grid, over_seeds

LEFT = ("model", "method", "letters")


def markdown(blocks: list[Block]) -> str:
    """All blocks, one table each."""
    return "\n".join(_markdown(block.title, grid(block)) + _seeds_markdown(block) for block in blocks)


def _markdown(title: str, table: Grid) -> str:
    aligned = "|".join("---" if head in LEFT else "---:" for head in table.heads)
    lines = [f"## {plain(title)}", "", "| " + " | ".join(map(plain, table.heads)) + " |", f"|{aligned}|"]
    lines += ["| " + " | ".join(plain(cell.text + cell.mark) for cell in line.cells) + " |" for line in table.lines]
    return "\n".join([*lines, "", *(f"- {plain(remark)}" for remark in table.remarks), ""])


def _seeds_markdown(block: Block) -> str:
    heads, rows = over_seeds(block)
    if not rows:
        return ""
    lines = ["| " + " | ".join(map(plain, row)) + " |" for row in (heads, *rows)]
    aligned = "|---|---|" + "---:|" * (len(heads) - 2)
    return "\n".join(["", lines[0], aligned, *lines[1:], "", f"- {SPREAD}", ""])


def plain(text: str) -> str:
    """Text that cannot break a markdown table or carry markup."""
    flat = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", flat)


def latex(blocks: list[Block]) -> str:
    """All blocks as booktabs tables."""
    tables = [table for block in blocks for table in (_latex(block.title, grid(block)), _seeds_latex(block)) if table]
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables]) + "\n"


def _latex(title: str, table: Grid) -> str:
    columns = "".join("l" if head in LEFT else "r" for head in table.heads)
    ours = [_latex_line(line) for line in table.lines if line.row]
    theirs = [_latex_line(line) for line in table.lines if line.published]
    body = [*ours, *(["\\midrule"] if ours and theirs else []), *theirs]
    lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [" & ".join(map(tex, table.heads)) + " \\\\", "\\midrule", *body, "\\bottomrule", "\\end{tabular}"]
    remarks = " ".join(map(tex, table.remarks))
    return "\n".join([*lines, f"\\caption{{{tex(title)}. {remarks}}}", "\\end{table}"])


def _seeds_latex(block: Block) -> str:
    heads, rows = over_seeds(block)
    if not rows:
        return ""
    lines = [" & ".join(map(tex, row)) + " \\\\" for row in (heads, *rows)]
    columns = "ll" + "r" * (len(heads) - 2)
    table = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", lines[0], "\\midrule"]
    return "\n".join([*table, *lines[1:], "\\bottomrule", "\\end{tabular}", f"\\caption{{{SPREAD}}}", "\\end{table}"])


def _latex_line(line: Line) -> str:
    return " & ".join(tex(cell.text + cell.mark) for cell in line.cells) + " \\\\"


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$",
    "†": r"\textdagger{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}  # fmt: skip


def tex(text: str) -> str:
    """Text that cannot break a LaTeX table or carry a command."""
    return "".join(TEX.get(char, char if char.isprintable() else " ") for char in text)


def comma_separated(blocks: list[Block]) -> str:
    """All blocks under one head, a row a line: scores times 100, `COLUMN seen` beside each task."""
    tables = [(block, grid(block, members=True)) for block in blocks]
    scores = {task: None for block, _ in tables for task in block.tasks}
    names = dict.fromkeys(chain.from_iterable(table.heads for _, table in tables))
    extra = [f"{task} seen" for task in scores]
    file = io.StringIO()
    writer = csv.DictWriter(file, ["suite", "block", *names, *extra, "published"], lineterminator="\n")
    writer.writeheader()
    for number, (block, table) in enumerate(tables, start=1):
        for line in table.lines:
            facts = {head: spreadsheet(cell) for head, cell in zip(table.heads, line.cells, strict=True)}
            if line.row:
                facts |= {f"{task} seen": line.row.seen(task) for task in line.row.runs}
            source = line.published.table.source if line.published else ""
            writer.writerow({"suite": block.suite, "block": number, **facts, "published": source})
    return file.getvalue()


def spreadsheet(cell: Cell) -> str:
    """A value as a CSV field; a name that a spreadsheet would run as a formula is quoted."""
    if cell.value is None:
        return "" if cell.text == "–" else cell.text
    if isinstance(cell.value, float):
        return f"{cell.value:.6g}"
    text = str(cell.value)
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


FORMATS: dict[str, Callable[[list[Block]], str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated}
