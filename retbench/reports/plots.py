"""Plots for papers: the figures of every leaderboard as SVG files, and as PNG if the extra `plots` is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

from retbench.reports.leaderboard import Leaderboard
from retbench.reports.svg_charts import draw_cost_scatters, to_standalone_svg
from retbench.reports.svg_figures import draw_heat_map, draw_length_curves, draw_query_scatter, draw_training_curves
from retbench.reports.svg_size_curves import draw_size_curves
from retbench.system.durable_files import create_writable_folder, write_file_atomically

PNG_SCALE = 2  # 1,100 points wide become 2,200 pixels, enough for print
FIGURES = {
    "heat-map": draw_heat_map,
    "query-by-query": draw_query_scatter,
    "over-length": draw_length_curves,
    "training-loss": draw_training_curves,
    "over-bytes": draw_size_curves,
}


def write_plots(boards: list[Leaderboard], folder: Path) -> list[Path]:
    """Write the figures of all leaderboards that have the data for them; return the files."""
    create_writable_folder(folder, "name another folder for --plots")
    files: list[Path] = []
    for number, board in enumerate(boards, start=1):
        drawn = {name: draw(board) for name, draw in FIGURES.items()} | draw_cost_scatters(board)
        for name, chart in drawn.items():
            if chart is None:
                continue
            file = folder / f"{number}-{re.sub(r'[^a-z0-9]+', '-', board.title.lower())}-{name}.svg"
            write_file_atomically(file, to_standalone_svg(chart).encode())
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
    write_file_atomically(target, bytes(svg_to_bytes(svg_path=str(file), zoom=PNG_SCALE)))
    return target
