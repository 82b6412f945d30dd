"""A paper's figures beside ours: each figure is within the table's tolerance, outside it, or not run.

The tolerance and its reason are data of the published table, so nobody chooses them after seeing the scores.
"""

from dataclasses import dataclass
from typing import Literal

from retbench.reports.formats import escape_latex, escape_markdown
from retbench.reports.published_tables import PublishedTable

Verdict = Literal["within tolerance", "outside", "not run", "no tolerance stated"]

AVERAGE = "average"  # the column of a table that publishes only means
NOT_IN_PLAN = "not in this plan"
ROUNDING = 1e-9  # published figures are decimal: 0.423 - 0.418 must not be more than 0.005
MAX_NAMES = 3  # of the columns that a verdict names


@dataclass(frozen=True)
class ReproducedFigure:
    """A published figure and the measured one: scores from 0 to 1, or differences of two."""

    column: str
    published: float
    measured: float | None
    tolerance: float | None

    @property
    def verdict(self) -> Verdict:
        """What the measured figure says about a reproduction."""
        if self.measured is None:
            return "not run"
        if self.tolerance is None:
            return "no tolerance stated"
        near = abs(self.measured - self.published) <= self.tolerance + ROUNDING
        return "within tolerance" if near else "outside"

    def format_figures(self) -> str:
        """The published figure, and behind an arrow the measured one."""
        figures = [self.published] if self.measured is None else [self.published, self.measured]
        return " → ".join(f"{100 * figure:.2f}" for figure in figures)


@dataclass(frozen=True)
class ReproducedRow:
    """A row of a published table, and the cells of the plan that stand beside it; None if the plan has none."""

    name: str
    cells: str | None
    figures: tuple[ReproducedFigure, ...]

    def list_columns(self, verdict: Verdict) -> list[str]:
        """The columns with this verdict; those outside with their difference in points."""
        return [
            f"{figure.column} {100 * (figure.measured - figure.published):+.2f}"
            if verdict == "outside" and figure.measured is not None
            else figure.column
            for figure in self.figures
            if figure.verdict == verdict
        ]

    def format_verdict(self) -> str:
        """The verdict of the row, with the columns that differ."""
        if self.cells is None:
            return NOT_IN_PLAN
        verdicts = {figure.verdict for figure in self.figures}
        if len(verdicts) == 1 and "outside" not in verdicts:
            return verdicts.pop()
        order: tuple[Verdict, ...] = ("outside", "within tolerance", "no tolerance stated", "not run")
        return "; ".join(
            f"{verdict}: {_join_names(self.list_columns(verdict))}" for verdict in order if verdict in verdicts
        )


@dataclass(frozen=True)
class ReproductionTable:
    """A published table with our figures beside its own."""

    table: PublishedTable
    rows: tuple[ReproducedRow, ...]

    @property
    def columns(self) -> list[str]:
        """The columns with a figure, in the order of the published table."""
        found = {figure.column for row in self.rows for figure in row.figures}
        return [column for column in (*self.table.tasks, AVERAGE) if column in found]

    @property
    def has_cells(self) -> bool:
        """Whether the plan has cells beside any row."""
        return any(row.cells is not None for row in self.rows)

    def format_lines(self) -> tuple[list[str], list[list[str]]]:
        """The heads and the lines of the table as text."""
        heads = ["row", "our cells", *self.columns, "reproduction"]
        lines = []
        for row in self.rows:
            figures = {figure.column: figure.format_figures() for figure in row.figures}
            cells = [row.cells or "–", *(figures.get(column, "–") for column in self.columns)]
            lines.append([row.name, *cells, row.format_verdict()])
        return heads, lines

    def describe(self) -> list[str]:
        """The source, the caveat, what the figures are, and the tolerance with its reason."""
        table = self.table
        unit = "gains in points" if table.measures == "gain" else "scores in points"
        others = ", ".join(f"{points:g} for {column}" for column, points in table.tolerances.items())
        tolerance = (
            "No tolerance is stated."
            if table.tolerance is None
            else f"Tolerance: {100 * table.tolerance / table.scale:g} points"
            + (f" ({others})" if others else "")
            + f". {table.tolerance_reason}"
        )
        figures = f"Published → measured, {unit}; the metric is {table.metric}"
        figures += "".join(f", {metric} for {column}" for column, metric in table.metrics.items())
        return [f"Source: {table.source}.", *([table.caveat] if table.caveat else []), f"{figures}.", tolerance]


def _join_names(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def format_reproduction_markdown(tables: list[ReproductionTable]) -> str:
    """All tables as markdown."""
    return "\n\n".join(map(_format_markdown_table, tables))


def _format_markdown_table(table: ReproductionTable) -> str:
    heads, lines = table.format_lines()
    parts = ["| " + " | ".join(map(escape_markdown, cells)) + " |" for cells in (heads, *lines)]
    alignment = "|---|---|" + "---:|" * len(table.columns) + "---|"
    notes = [f"- {escape_markdown(note)}" for note in table.describe()]
    return "\n".join([f"## {escape_markdown(table.table.title)}", "", parts[0], alignment, *parts[1:], "", *notes])


def format_reproduction_latex(tables: list[ReproductionTable]) -> str:
    """All tables as LaTeX booktabs tables."""
    return "\n\n".join(map(_format_latex_table, tables))


def _format_latex_table(table: ReproductionTable) -> str:
    heads, lines = table.format_lines()
    rows = [" & ".join(map(escape_latex, cells)) + " \\\\" for cells in (heads, *lines)]
    begin = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{ll{'r' * len(table.columns)}l}}", "\\toprule"]
    caption = escape_latex(" ".join([f"{table.table.title}.", *table.describe()]))
    end = ["\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}"]
    return "\n".join([*begin, rows[0], "\\midrule", *rows[1:], *end])
