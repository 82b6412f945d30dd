"""Axes of SVG charts: scales with round ticks, and the frame that all charts share."""

import math
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 1100, 460, 56, 44, 24, 190


def format_number(value: float) -> str:
    """A number of an axis or a label."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def wrap_svg(parts: list[str], width: int, height: int, name: str) -> str:
    """An SVG element; the name is read by screen readers."""
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


def build_log_scale(values: list[float]) -> AxisScale:
    """The horizontal axis of a quantity that spans orders of magnitude."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.1, (high - low) * 0.1)
    low, high = low - margin, high + margin
    marks = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    steps = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in marks]
    ticks = tuple(step for step in steps if low <= math.log10(step) <= high)
    return AxisScale(low, high, LEFT, WIDTH - RIGHT, True, ticks)


def build_linear_scale(values: list[float]) -> AxisScale:
    """The vertical axis of a score x 100."""
    margin = max(1.0, (max(values) - min(values)) * 0.15)
    low, high = max(0.0, min(values) - margin), min(100.0, max(values) + margin)
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s * step for s in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (s * step) <= 8)
    ticks = tuple(float(t) for t in np.arange(math.ceil(low / step) * step, high, step))
    return AxisScale(low, high, HEIGHT - BOTTOM, TOP, False, ticks)


def build_step_scale(values: list[float]) -> AxisScale:
    """The horizontal axis of a number that grows evenly, such as training steps."""
    low, high = min(values), max(*values, min(values) + 1)
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s * step for s in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (s * step) <= 8)
    ticks = tuple(float(t) for t in np.arange(math.ceil(low / step) * step, high + step / 2, step))
    return AxisScale(low, high, LEFT, WIDTH - RIGHT, False, ticks)


def draw_axes(x_scale: AxisScale, y_scale: AxisScale, title: str, quality: str) -> list[str]:
    """Both axes with grid, ticks and titles."""
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{base}H{right}" fill="none"/>']
    for tick in x_scale.ticks:
        x = x_scale.to_position(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{format_number(tick)}</text>')
    for tick in y_scale.ticks:
        y = y_scale.to_position(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>')
    return [*parts, f'<text x="8" y="{TOP - 4}">{escape(quality)}</text>']
