"""Plots for papers: every scatter of the page as an SVG file, and as PNG where the extra `plots` is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

from retbench.reports.leaderboard import Block
from retbench.reports.svg_charts import scatters, standalone

PNG_SCALE = 3  # 720 points wide become 2160 pixels, enough for print


def plots(blocks: list[Block], folder: Path) -> list[Path]:
    """Write all plots of all blocks; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, block in enumerate(blocks, start=1):
        for cost, picture in scatters(block).items():
            file = folder / f"{number}-{re.sub(r'[^a-z0-9]+', '-', block.title.lower())}-{cost}.svg"
            file.write_text(standalone(picture), encoding="utf-8")
            written.append(file)
            if can_png():
                written.append(_png(file))
    return written


def can_png() -> bool:
    """Whether PNG can be written here."""
    return find_spec("resvg_py") is not None


def _png(file: Path) -> Path:
    from resvg_py import svg_to_bytes

    target = file.with_suffix(".png")
    target.write_bytes(bytes(svg_to_bytes(svg_path=str(file), zoom=PNG_SCALE)))
    return target
