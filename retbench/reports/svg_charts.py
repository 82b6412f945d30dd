"""Pictures as SVG, drawn by hand: quality against cost with the Pareto front, and how scores spread over queries.

The same picture serves the page, where the page's colours win, and a paper, where it stands alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from retbench.reports.leaderboard import Block, Row
from retbench.reports.table_cells import costs

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 56, 44, 16, 150
COLOURS = {  # Okabe and Ito's, which colour-blind readers can tell apart
    "base": "#0072b2", "instruct": "#56b4e9", "code": "#d55e00", "math": "#cc79a7", "reasoning": "#009e73",
    "vision": "#e69f00", "retriever": "#666666",
}  # fmt: skip
LEXICAL = "#999999"
MORE_IS_BETTER = ("tokens_per_second", "documents_per_second")
BINS = 10
STYLE = (
    "text{font:12px 'DejaVu Sans',sans-serif;fill:#222}.label{paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".axis{stroke:#888}.grid{stroke:#ddd}.front{stroke:#222}"
)


@dataclass(frozen=True)
class Point:
    """One row in a scatter."""

    label: str
    x: float
    y: float
    colour: str


def scatters(block: Block) -> dict[str, str]:
    """One picture a cost column, by the name of the cost; rows without a figure or a score are not in it."""
    found = {}
    for name, (title, measure, _) in costs(block).items():
        rows = [(row, measure(row), block.score(row, block.goal)) for row in block.rows]
        points = [Point(_label(row), x, 100 * y, colour(row)) for row, x, y in rows if x and y is not None]
        if len(points) > 1:
            found[name] = _scatter(points, title, f"{block.metric} × 100", name in MORE_IS_BETTER)
    return found


def standalone(picture: str) -> str:
    """A picture as a file of its own."""
    head, body = picture.split(">", 1)
    paper = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{paper}{body}\n'


def _label(row: Row) -> str:
    return f"{row.model} · {row.label}"


def colour(row: Row) -> str:
    """By specialisation, the same in every picture."""
    return COLOURS.get(row.card.get("specialisation") or "", LEXICAL)


def front(points: Sequence[Point], more_is_better: bool) -> list[Point]:
    """The points that no other beats on both axes, from cheap to dear."""
    sign = -1 if more_is_better else 1
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (sign * point.x, -point.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def _scatter(points: list[Point], title: str, quality: str, more_is_better: bool) -> str:
    across, up = _logarithmic([p.x for p in points]), _linear([p.y for p in points])
    best = front(points, more_is_better)
    path = " ".join(f"{across.at(p.x):.1f},{up.at(p.y):.1f}" for p in best)
    parts = [
        *_axes(across, up, title, quality),
        f'<polyline class="front" points="{path}" fill="none" stroke-dasharray="4 3"/>',
    ]
    taken: list[float] = []
    for point in sorted(points, key=lambda point: -point.y):
        x, y = across.at(point.x), up.at(point.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{point.colour}" tabindex="0" '
            f'data-tip="{escape(point.label)}: {point.y:.2f} at {_figure(point.x)} {escape(title)}'
            f'{", on the Pareto front" if point in best else ""}"><title>{escape(point.label)}</title></circle>'
        )
        place = max(y, taken[-1] + 13) if taken else y  # labels run down the page and never overlap
        taken.append(place)
        parts.append(
            f'<text class="label" x="{x + 8:.1f}" y="{place + 4:.1f}">{escape(point.label.split(" · ")[0][:28])}</text>'
        )
    return _svg(parts, WIDTH, HEIGHT, f"{quality} against {title}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _svg(parts: list[str], width: int, height: int, name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Scale:
    """From a value to a place on the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies."""
        if self.logarithmic:
            value = math.log10(value)
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _logarithmic(values: list[float]) -> Scale:
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.1, (high - low) * 0.1)
    low, high = low - room, high + room
    marks = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    steps = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in marks]
    ticks = tuple(step for step in steps if low <= math.log10(step) <= high)
    return Scale(low, high, LEFT, WIDTH - RIGHT, True, ticks)


def _linear(values: list[float]) -> Scale:
    room = max(1.0, (max(values) - min(values)) * 0.15)
    low, high = max(0.0, min(values) - room), min(100.0, max(values) + room)
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s * step for s in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (s * step) <= 8)
    ticks = tuple(float(t) for t in np.arange(math.ceil(low / step) * step, high, step))
    return Scale(low, high, HEIGHT - BOTTOM, TOP, False, ticks)


def _axes(across: Scale, up: Scale, title: str, quality: str) -> list[str]:
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{base}H{right}" fill="none"/>']
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{_figure(tick)}</text>')
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>')
    return [*parts, f'<text x="8" y="{TOP - 4}">{escape(quality)}</text>']


def histogram(values: Sequence[float], name: str) -> str:
    """How many queries scored 0 to 0.1, 0.1 to 0.2, ... 0.9 to 1."""
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    tallest, parts = max(1, int(counts.max())), []
    for number, count in enumerate(counts):
        height = 36 * int(count) / tallest
        tip = f"{count} of {len(values)} queries score {number / BINS:.1f} to {(number + 1) / BINS:.1f}"
        box = f'x="{number * 11}" y="{36 - height:.1f}" width="10" height="{max(height, 0.5):.1f}"'
        parts.append(f'<rect class="bar" {box} data-tip="{tip}"/>')
    return _svg(parts, 11 * BINS, 37, name)
