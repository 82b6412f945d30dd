"""Plots for papers: every scatter chart as an SVG file, and as PNG if the extra `plots` is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

from retbench.reports.leaderboard import Leaderboard
from retbench.reports.svg_charts import draw_cost_scatters, to_standalone_svg

PNG_SCALE = 3  # 720 points wide become 2160 pixels, enough for print


def write_plots(boards: list[Leaderboard], folder: Path) -> list[Path]:
    """Write the charts of all leaderboards; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for number, board in enumerate(boards, start=1):
        for cost, chart in draw_cost_scatters(board).items():
            file = folder / f"{number}-{re.sub(r'[^a-z0-9]+', '-', board.title.lower())}-{cost}.svg"
            file.write_text(to_standalone_svg(chart), encoding="utf-8")
            files.append(file)
            if can_write_png():
                files.append(_write_png(file))
    return files


def can_write_png() -> bool:
    """Whether the package for writing PNG is installed."""
    return find_spec("resvg_py") is not None


def _write_png(file: Path) -> Path:
    from resvg_py import svg_to_bytes

    target = file.with_suffix(".png")
    target.write_bytes(bytes(svg_to_bytes(svg_path=str(file), zoom=PNG_SCALE)))
    return target
