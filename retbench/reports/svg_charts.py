"""SVG charts: quality against cost with the Pareto front, and histograms of scores over queries.

The same chart is used in the HTML page, with the page's colours, and as a file of its own for papers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.short_names import cut_in_the_middle
from retbench.reports.svg_axes import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    AxisScale,
    build_linear_scale,
    build_log_scale,
    draw_axes,
    format_number,
    wrap_svg,
)
from retbench.reports.table_cells import select_cost_columns

MAX_LABELS = 12  # with more points, labels are shown on hover only
SPECIALISATION_COLOURS = {  # Okabe and Ito's palette, safe for colour-blind readers
    "base": "#0072b2", "instruct": "#56b4e9", "code": "#d55e00", "math": "#cc79a7", "reasoning": "#009e73",
    "vision": "#e69f00", "retriever": "#8c564b",
}  # fmt: skip
DEFAULT_COLOUR = "#999999"
HIGHER_IS_BETTER = ("tokens_per_second", "documents_per_second")
BINS = 10
STYLE = (
    "text{font:12px 'DejaVu Sans',sans-serif;fill:#222}.label{paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".axis{stroke:#888}.grid{stroke:#ddd}.front{stroke:#222;stroke-dasharray:4 3}"
    ".baseline{stroke:#666;stroke-dasharray:1 3}"
)


@dataclass(frozen=True)
class ScatterPoint:
    """One row in a scatter."""

    label: str
    x: float
    y: float
    colour: str
    group: str = ""  # the specialisation that the colour stands for
    row: int = 0  # the row on the leaderboard


def draw_cost_scatters(board: Leaderboard) -> dict[str, str]:
    """One chart per cost column, by the cost's name; rows without a cost or a score are left out."""
    charts = {}
    for name, (title, measure, _) in select_cost_columns(board).items():
        rows = [(row, measure(row), board.compute_score(row, board.ranked_by)) for row in board.rows]
        points = [
            ScatterPoint(_format_label(row), x, 100 * y, get_colour(row), _get_specialisation(row), number)
            for number, (row, x, y) in enumerate(rows)
            if x and y is not None
        ]
        if len(points) > 1:
            chart = ScatterChart(title, f"{board.metric} × 100", name in HIGHER_IS_BETTER, _list_baselines(board))
            charts[name] = chart.draw(points)
    return charts


def _list_baselines(board: Leaderboard) -> list[ScatterPoint]:
    """Lexical models, drawn as lines: their cost does not compare with that of a model on a GPU."""
    scores = [(row, board.compute_score(row, board.ranked_by)) for row in board.rows]
    return [
        ScatterPoint(row.model, 0, 100 * score, DEFAULT_COLOUR)
        for row, score in scores
        if score is not None and row.model_card.get("kind") == "lexical" and not row.model_card.get("parameters")
    ]


def to_standalone_svg(picture: str) -> str:
    """A chart as the text of an SVG file."""
    head, body = picture.split(">", 1)
    paper = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{paper}{body}\n'


def _format_label(row: LeaderboardRow) -> str:
    return f"{row.model} · {row.label}"


def get_colour(row: LeaderboardRow) -> str:
    """The colour of the row's specialisation, equal in all charts."""
    return SPECIALISATION_COLOURS.get(_get_specialisation(row), DEFAULT_COLOUR)


def _get_specialisation(row: LeaderboardRow) -> str:
    kind = row.model_card.get("specialisation")
    return str(kind) if kind in SPECIALISATION_COLOURS else "other"


def find_pareto_front(points: Sequence[ScatterPoint], higher_is_better: bool) -> list[ScatterPoint]:
    """The points that no other point beats on both axes, cheapest first."""
    sign = -1 if higher_is_better else 1
    pareto_front: list[ScatterPoint] = []
    for point in sorted(points, key=lambda point: (sign * point.x, -point.y)):
        if not pareto_front or point.y > pareto_front[-1].y:
            pareto_front.append(point)
    return pareto_front


@dataclass(frozen=True)
class ScatterChart:
    """Quality against one cost: points by row, the Pareto front, baselines as lines, and a legend of the colours."""

    title: str
    quality: str
    higher_is_better: bool
    baselines: Sequence[ScatterPoint] = ()

    def draw(self, points: list[ScatterPoint]) -> str:
        """The chart as SVG."""
        x_scale = build_log_scale([point.x for point in points])
        y_scale = build_linear_scale([point.y for point in (*points, *self.baselines)])
        parts = draw_axes(x_scale, y_scale, self.title, self.quality)
        for line in self.baselines:
            y = y_scale.to_position(line.y)
            parts.append(f'<path class="baseline" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="label" x="{LEFT + 6}" y="{y - 4:.1f}">{escape(line.label)} {line.y:.1f}</text>')
        front = find_pareto_front(points, self.higher_is_better)
        path = " ".join(f"{x_scale.to_position(p.x):.1f},{y_scale.to_position(p.y):.1f}" for p in front)
        better = "high" if self.higher_is_better else "low"
        parts.append(f'<polyline class="front" data-better="{better}" points="{path}" fill="none"/>')
        parts += [self._draw_point(point, x_scale, y_scale, point in front) for point in points]
        if len(points) <= MAX_LABELS:
            parts += _draw_labels(points, x_scale, y_scale)
        parts += _draw_legend(points)
        return wrap_svg(parts, WIDTH, HEIGHT, f"{self.quality} against {self.title}")

    def _draw_point(self, point: ScatterPoint, x_scale: AxisScale, y_scale: AxisScale, is_in_front: bool) -> str:
        tip = f"{point.label}: {point.y:.2f} at {format_number(point.x)} {self.title}"
        tip += ", on the Pareto front" if is_in_front else ""
        x, y = x_scale.to_position(point.x), y_scale.to_position(point.y)
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{point.colour}" tabindex="0" data-row="{point.row}" '
            f'data-tip="{escape(tip)}"><title>{escape(point.label)}</title></circle>'
        )


def _draw_labels(points: list[ScatterPoint], x_scale: AxisScale, y_scale: AxisScale) -> list[str]:
    """Model and method beside each point, placed downwards so that labels never overlap."""
    parts: list[str] = []
    lowest = -math.inf
    for point in sorted(points, key=lambda point: -point.y):
        lowest = max(y_scale.to_position(point.y), lowest + 14)
        x = x_scale.to_position(point.x) + 8
        label = escape(cut_in_the_middle(point.label, 44))
        parts.append(f'<text class="label" data-row="{point.row}" x="{x:.1f}" y="{lowest + 4:.1f}">{label}</text>')
    return parts


def _draw_legend(points: list[ScatterPoint]) -> list[str]:
    """The colours of the points, and the line of the Pareto front, right of the chart."""
    x, parts = WIDTH - RIGHT + 24, []
    for number, (group, colour) in enumerate(sorted({point.group: point.colour for point in points}.items())):
        y = TOP + 18 * number + 8
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 12}" y="{y + 4}">{escape(group)}</text>')
    y = TOP + 18 * len({point.group for point in points}) + 8
    return [*parts, f'<path class="front" d="M{x - 6} {y}h14"/>', f'<text x="{x + 12}" y="{y + 4}">Pareto front</text>']


def draw_histogram(values: Sequence[float], name: str) -> str:
    """A histogram of scores in ten bins: 0 to 0.1, 0.1 to 0.2, ... 0.9 to 1."""
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    tallest, parts = max(1, int(counts.max())), []
    for number, count in enumerate(counts):
        height = 36 * int(count) / tallest
        tip = f"{count} of {len(values)} queries score {number / BINS:.1f} to {(number + 1) / BINS:.1f}"
        box = f'x="{number * 11}" y="{36 - height:.1f}" width="10" height="{max(height, 0.5):.1f}"'
        parts.append(f'<rect class="bar" {box} data-tip="{tip}"/>')
    return wrap_svg(parts, 11 * BINS, 37, name)
