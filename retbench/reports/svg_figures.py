"""SVG figures for papers beside the scatter charts: heat map, two rows query by query, curves over length or step."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from retbench.cards import catalog
from retbench.reports.leaderboard import Leaderboard
from retbench.reports.short_names import cut_in_the_middle
from retbench.reports.svg_axes import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    build_linear_scale,
    build_log_scale,
    build_step_scale,
    draw_axes,
    format_number,
    wrap_svg,
)
from retbench.system.text_parsers import parse_json

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#666666")  # Okabe and Ito
NAME_WIDTH, CELL_WIDTH, CELL_HEIGHT, HEAD_HEIGHT = 330, 84, 22, 110
MIN_CURVE_POINTS = 3
METRICS_FILE = "metrics.jsonl"  # of a training, beside the weights

Curve = Sequence[tuple[float, float]]


def draw_heat_map(board: Leaderboard) -> str:
    """Rows by tasks; the colour of a cell is its place between the task's lowest and highest score."""
    rows = [row for row in board.rows if row.runs]
    columns: list[str | None] = [*([None] if board.ranked_by is None else []), *board.tasks]
    parts = [
        f'<text transform="translate({_get_column(number) + CELL_WIDTH / 2:.0f} {HEAD_HEIGHT - 8}) rotate(-35)">'
        f"{escape(column or 'average')}</text>"
        for number, column in enumerate(columns)
    ]
    for number, column in enumerate(columns):
        scores = [board.compute_score(row, column) for row in rows]
        known = [score for score in scores if score is not None]
        for line, score in enumerate(scores):
            if score is not None:
                share = (score - min(known)) / (max(known) - min(known)) if max(known) > min(known) else 0.5
                parts += _draw_cell(_get_column(number), HEAD_HEIGHT + line * CELL_HEIGHT, score, share)
    for line, row in enumerate(rows):
        name, y = escape(cut_in_the_middle(f"{row.model} · {row.label}", 46)), HEAD_HEIGHT + line * CELL_HEIGHT + 15
        parts.append(f'<text x="{NAME_WIDTH - 8}" y="{y}" text-anchor="end">{name}</text>')
    height = HEAD_HEIGHT + CELL_HEIGHT * len(rows) + 8
    return wrap_svg(parts, _get_column(len(columns)) + 60, height, f"{board.metric} by model and task")


def _get_column(number: int) -> int:
    return NAME_WIDTH + number * CELL_WIDTH


def _draw_cell(x: int, y: int, score: float, share: float) -> list[str]:
    red, green, blue = (round(255 + (end - 255) * 0.75 * share) for end in (47, 158, 110))
    return [
        f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" fill="rgb({red},{green},{blue})"/>',
        f'<text x="{x + CELL_WIDTH / 2 - 1}" y="{y + 15}" text-anchor="middle" fill="#111">{100 * score:.2f}</text>',
    ]


def draw_query_scatter(board: Leaderboard) -> str | None:
    """Each query as a point: its score by the second row against its score by the first; None without two rows."""
    rows = [row for row in board.rows if all(task in row.runs for task in board.tasks)][:2]
    if len(rows) < 2:
        return None
    size, parts = HEIGHT - 80, []
    for share in range(0, 101, 20):
        place = LEFT + size * share / 100
        parts.append(f'<path class="grid" d="M{place} {TOP}V{TOP + size}M{LEFT} {TOP + place - LEFT}H{LEFT + size}"/>')
        parts.append(f'<text x="{place}" y="{TOP + size + 16}" text-anchor="middle">{share}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{TOP + size * (1 - share / 100) + 4}" text-anchor="end">{share}</text>')
    parts.append(f'<path class="front" d="M{LEFT} {TOP + size}L{LEFT + size} {TOP}"/>')
    for number, task in enumerate(board.tasks):
        colour, (first, second) = COLOURS[number % len(COLOURS)], (row.runs[task] for row in rows)
        if first.queries != second.queries:
            continue
        for a, b in zip(first.values, second.values, strict=True):
            x, y = LEFT + size * float(b), TOP + size * (1 - float(a))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.5"/>')
        parts += _draw_legend_entry(LEFT + size + 24, number, colour, task)
    names = [escape(cut_in_the_middle(f"{row.model} · {row.label}", 60)) for row in rows]
    parts.append(f'<text x="{LEFT + size / 2}" y="{TOP + size + 36}" text-anchor="middle">{names[1]}</text>')
    parts.append(f'<text x="8" y="{TOP - 8}">{names[0]} (above the line: better)</text>')
    return wrap_svg(parts, LEFT + size + 260, HEIGHT, f"{board.metric} query by query")


def draw_length_curves(board: Leaderboard) -> str | None:
    """The score over the number that ends the names of tasks, such as a length; None unless all names end so."""
    lengths = {task: int(found[1]) for task in board.tasks if (found := re.search(r"-(\d+)$", task))}
    if len(lengths) < len(board.tasks) or len(set(lengths.values())) < MIN_CURVE_POINTS:
        return None
    curves = {
        f"{row.model} · {row.label}": sorted((lengths[task], 100 * run.score) for task, run in row.runs.items())
        for row in board.rows
        if len(row.runs) >= MIN_CURVE_POINTS
    }
    return draw_curves(curves, "length", f"{board.metric} × 100", logarithmic=True) if curves else None


def draw_training_curves(board: Leaderboard) -> str | None:
    """The loss of the trained models whose metrics are on this machine, over steps; None if there is none."""
    curves = {row.model: curve for row in board.rows if len(curve := _read_losses(row.model)) >= MIN_CURVE_POINTS}
    return draw_curves(curves, "step", "training loss") if curves else None


def _read_losses(model: str) -> list[tuple[float, float]]:
    cards = catalog.load_model_cards()
    weights = cards.find(model).weights if model in cards else None
    file = Path(weights.path) / METRICS_FILE if weights and weights.path else None
    if file is None or not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [point for line in lines if (point := _parse_loss(line))]


def _parse_loss(line: str) -> tuple[float, float] | None:
    """The step and the loss of a line of metrics; None for an evaluation, or a line that a full disk cut short."""
    try:
        facts = parse_json(line)
        step, loss = float(facts["step"]), float(facts["loss"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return (step, loss) if math.isfinite(step) and math.isfinite(loss) else None


def draw_curves(curves: Mapping[str, Curve], x_title: str, y_title: str, logarithmic: bool = False) -> str:
    """One line per name, with a legend."""
    xs = [x for curve in curves.values() for x, _ in curve]
    x_scale = build_log_scale(xs) if logarithmic else build_step_scale(xs)
    y_scale = build_linear_scale([y for curve in curves.values() for _, y in curve])
    parts = draw_axes(x_scale, y_scale, x_title, y_title)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_scale.to_position(x):.1f},{y_scale.to_position(y):.1f}" for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if logarithmic:
            x, y = curve[-1]
            title = f"<title>{escape(name)}: {y:.2f} at {format_number(x)}</title>"
            place = f'cx="{x_scale.to_position(x):.1f}" cy="{y_scale.to_position(y):.1f}"'
            parts.append(f'<circle {place} r="4" fill="{colour}">{title}</circle>')
        parts += _draw_legend_entry(WIDTH - RIGHT + 24, number, colour, name)
    return wrap_svg(parts, WIDTH, HEIGHT, f"{y_title} over {x_title}")


def _draw_legend_entry(x: int, number: int, colour: str, name: str) -> list[str]:
    y = TOP + 18 * number + 8
    return [
        f'<rect x="{x}" y="{y - 4}" width="10" height="8" fill="{colour}"/>',
        f'<text x="{x + 16}" y="{y + 4}">{escape(cut_in_the_middle(name, 24))}</text>',
    ]
