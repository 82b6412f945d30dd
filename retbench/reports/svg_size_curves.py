"""The score over the bytes of a document: a line for each model, method and search, a point for each size of vector."""

from collections import defaultdict

from retbench.cards import options
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.svg_figures import draw_curves
from retbench.reports.table_cells import compute_bytes_per_document

FLOAT_SEARCH = "float"  # the vectors as they are stored, with or without an index


def draw_size_curves(board: Leaderboard) -> str | None:
    """Rows that differ in dimensions share a line; None unless a model and method have two sizes of vectors."""
    sizes: dict[tuple[str, str], set[float]] = defaultdict(set)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in board.rows:
        size, score = compute_bytes_per_document(row), board.compute_score(row, board.ranked_by)
        if size is not None and score is not None:
            sizes[row.model, row.method].add(size)
            curves[f"{row.model} · {row.method} · {_name_search(row)}"].append((size, 100 * score))
    if not any(len(found) > 1 for found in sizes.values()):
        return None
    ordered = {name: sorted(curve) for name, curve in curves.items()}
    return draw_curves(ordered, "bytes per document", f"{board.metric} × 100", logarithmic=True)


def _name_search(row: LeaderboardRow) -> str:
    """int8 or binary with its settings; one name for all searches of float vectors."""
    search = next(run.record.settings["retriever"] for run in row.runs.values())
    return str(search) if options.split_options(search)[0] in ("int8", "binary") else FLOAT_SEARCH
