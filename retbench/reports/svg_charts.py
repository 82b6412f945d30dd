"""SVG charts: quality against cost with the Pareto front, and histograms of scores over queries.

The same chart is used in the HTML page, with the page's colours, and as a file of its own for papers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.table_cells import select_cost_columns

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 56, 44, 16, 150
SPECIALISATION_COLOURS = {  # Okabe and Ito's palette, safe for colour-blind readers
    "base": "#0072b2", "instruct": "#56b4e9", "code": "#d55e00", "math": "#cc79a7", "reasoning": "#009e73",
    "vision": "#e69f00", "retriever": "#666666",
}  # fmt: skip
DEFAULT_COLOUR = "#999999"
HIGHER_IS_BETTER = ("tokens_per_second", "documents_per_second")
BINS = 10
STYLE = (
    "text{font:12px 'DejaVu Sans',sans-serif;fill:#222}.label{paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".axis{stroke:#888}.grid{stroke:#ddd}.front{stroke:#222}"
)


@dataclass(frozen=True)
class ScatterPoint:
    """One row in a scatter."""

    label: str
    x: float
    y: float
    colour: str


def draw_cost_scatters(board: Leaderboard) -> dict[str, str]:
    """One chart per cost column, by the cost's name; rows without a cost or a score are left out."""
    charts = {}
    for name, (title, measure, _) in select_cost_columns(board).items():
        rows = [(row, measure(row), board.compute_score(row, board.ranked_by)) for row in board.rows]
        points = [
            ScatterPoint(_format_label(row), x, 100 * y, get_colour(row)) for row, x, y in rows if x and y is not None
        ]
        if len(points) > 1:
            charts[name] = _draw_scatter(points, title, f"{board.metric} × 100", name in HIGHER_IS_BETTER)
    return charts


def to_standalone_svg(picture: str) -> str:
    """A chart as the text of an SVG file."""
    head, body = picture.split(">", 1)
    paper = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{paper}{body}\n'


def _format_label(row: LeaderboardRow) -> str:
    return f"{row.model} · {row.label}"


def get_colour(row: LeaderboardRow) -> str:
    """The colour of the row's specialisation, equal in all charts."""
    return SPECIALISATION_COLOURS.get(row.model_card.get("specialisation") or "", DEFAULT_COLOUR)


def find_pareto_front(points: Sequence[ScatterPoint], higher_is_better: bool) -> list[ScatterPoint]:
    """The points that no other point beats on both axes, cheapest first."""
    sign = -1 if higher_is_better else 1
    pareto_front: list[ScatterPoint] = []
    for point in sorted(points, key=lambda point: (sign * point.x, -point.y)):
        if not pareto_front or point.y > pareto_front[-1].y:
            pareto_front.append(point)
    return pareto_front


def _draw_scatter(points: list[ScatterPoint], title: str, quality: str, higher_is_better: bool) -> str:
    x_scale, y_scale = _build_log_scale([p.x for p in points]), _build_linear_scale([p.y for p in points])
    pareto_front = find_pareto_front(points, higher_is_better)
    path = " ".join(f"{x_scale.to_position(p.x):.1f},{y_scale.to_position(p.y):.1f}" for p in pareto_front)
    parts = [
        *_draw_axes(x_scale, y_scale, title, quality),
        f'<polyline class="front" points="{path}" fill="none" stroke-dasharray="4 3"/>',
    ]
    label_positions: list[float] = []
    for point in sorted(points, key=lambda point: -point.y):
        x, y = x_scale.to_position(point.x), y_scale.to_position(point.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{point.colour}" tabindex="0" '
            f'data-tip="{escape(point.label)}: {point.y:.2f} at {_format_number(point.x)} {escape(title)}'
            f'{", on the Pareto front" if point in pareto_front else ""}"><title>{escape(point.label)}</title></circle>'
        )
        # labels are placed downwards and never overlap
        label_y = max(y, label_positions[-1] + 13) if label_positions else y
        label_positions.append(label_y)
        label = escape(point.label.split(" · ")[0][:28])
        parts.append(f'<text class="label" x="{x + 8:.1f}" y="{label_y + 4:.1f}">{label}</text>')
    return _wrap_svg(parts, WIDTH, HEIGHT, f"{quality} against {title}")


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _wrap_svg(parts: list[str], width: int, height: int, name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class AxisScale:
    """Maps a value to a position in the chart."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def to_position(self, value: float) -> float:
        """The position of a value in the chart."""
        if self.logarithmic:
            value = math.log10(value)
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _build_log_scale(values: list[float]) -> AxisScale:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.1, (high - low) * 0.1)
    low, high = low - margin, high + margin
    marks = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    steps = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in marks]
    ticks = tuple(step for step in steps if low <= math.log10(step) <= high)
    return AxisScale(low, high, LEFT, WIDTH - RIGHT, True, ticks)


def _build_linear_scale(values: list[float]) -> AxisScale:
    margin = max(1.0, (max(values) - min(values)) * 0.15)
    low, high = max(0.0, min(values) - margin), min(100.0, max(values) + margin)
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s * step for s in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (s * step) <= 8)
    ticks = tuple(float(t) for t in np.arange(math.ceil(low / step) * step, high, step))
    return AxisScale(low, high, HEIGHT - BOTTOM, TOP, False, ticks)


def _draw_axes(x_scale: AxisScale, y_scale: AxisScale, title: str, quality: str) -> list[str]:
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{base}H{right}" fill="none"/>']
    for tick in x_scale.ticks:
        x = x_scale.to_position(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{_format_number(tick)}</text>')
    for tick in y_scale.ticks:
        y = y_scale.to_position(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>')
    return [*parts, f'<text x="8" y="{TOP - 4}">{escape(quality)}</text>']


def draw_histogram(values: Sequence[float], name: str) -> str:
    """A histogram of scores in ten bins: 0 to 0.1, 0.1 to 0.2, ... 0.9 to 1."""
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    tallest, parts = max(1, int(counts.max())), []
    for number, count in enumerate(counts):
        height = 36 * int(count) / tallest
        tip = f"{count} of {len(values)} queries score {number / BINS:.1f} to {(number + 1) / BINS:.1f}"
        box = f'x="{number * 11}" y="{36 - height:.1f}" width="10" height="{max(height, 0.5):.1f}"'
        parts.append(f'<rect class="bar" {box} data-tip="{tip}"/>')
    return _wrap_svg(parts, 11 * BINS, 37, name)
