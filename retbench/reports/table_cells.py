"""The leaderboard as a table of plain cells, built once and printed by every format."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retbench.cards.ann_settings import count_compressed_bytes
from retbench.records.extreme_score import explain_extreme_score
from retbench.records.record import Record
from retbench.reports.board_notes import EXTREME_MARK, MISSING, PUBLISHED_MARK, build_notes
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.published_tables import PublishedRow
from retbench.reports.seed_variation import ONE_SEED_MARK, has_one_seed
from retbench.store.vector_formats import VECTOR_FORMATS
from retbench.system.user_config import load_user_config

EXPOSURE_MARKS = {"seen": "*", "unknown": "?", "unseen": ""}
JOULES_PER_KWH = 3.6e6
INTERVAL_HEAD = "95% interval"
MEAN_RANK_HEAD = "mean rank"


@dataclass(frozen=True)
class TableCell:
    """One cell: the printed text, and the value that sorting uses."""

    text: str
    value: float | str | None
    mark: str = ""
    task: str | None = None


@dataclass(frozen=True)
class TableLine:
    """One line of the table: a measured row or a published row."""

    cells: list[TableCell]
    row: LeaderboardRow | None = None
    published: PublishedRow | None = None


@dataclass(frozen=True)
class LeaderboardTable:
    """Column heads, lines, and the notes below the table."""

    heads: list[str]
    lines: list[TableLine]
    notes: list[str]


CostColumn = tuple[str, Callable[[LeaderboardRow], float | None], str]


def _get_max_cost(name: str) -> Callable[[LeaderboardRow], float | None]:
    return lambda row: max(row.list_costs(name), default=None)


def _get_mean_cost(name: str) -> Callable[[LeaderboardRow], float | None]:
    return lambda row: fmean(values) if (values := row.list_costs(name)) else None


def _get_millions(name: str) -> Callable[[LeaderboardRow], float | None]:
    return lambda row: largest / 1e6 if (largest := max(row.list_costs(name), default=None)) is not None else None


def compute_energy(row: LeaderboardRow) -> float | None:
    """Kilowatt hours per million documents; None where a processor or GPU that computed was not measured."""
    costs = []
    for run in row.runs.values():
        cost, documents = run.record.cost, run.record.collection["documents"]
        names = ("cpu_joules", *(["gpu_joules"] if run.record.machine.get("gpu") else []))
        if not documents or any(cost.get(name) is None for name in names):
            return None
        costs.append(sum(cost[name] for name in names) / JOULES_PER_KWH / documents * 1e6)
    return fmean(costs) if costs else None


def compute_price(row: LeaderboardRow) -> float | None:
    """The price of a million documents: that of a server, or by the rates in retbench.toml; None without either."""
    rates, costs = load_user_config().prices or {}, []
    for run in row.runs.values():
        if (of_server := run.record.cost.get("price_per_million_documents")) is not None:
            costs.append(of_server)
            continue
        machine, speed = run.record.machine, run.record.cost.get("documents_per_second")
        rate = rates.get(str(machine.get("gpu"))) or rates.get(str(machine.get("cpu")))
        if rate is None or not speed:
            return None
        costs.append(rate * 1e6 / speed / 3600)
    return fmean(costs) if costs else None


def _get_compared_width(record: Record) -> int | None:
    """How many numbers of a vector are compared; records of early versions have only the width in the model card."""
    encoder, shape = record.settings["encoder"] or {}, record.cards["model"].get("shape") or {}
    stored = record.texts.get("document", {}).get("dimension") or shape.get("width")
    components = (
        encoder.get("method", {}).get("components") if encoder.get("method", {}).get("post") == "whiten" else None
    )
    width = encoder.get("dimensions") or components or stored
    return None if width is None else int(width)


def compute_bytes_per_document(row: LeaderboardRow) -> float | None:
    """The size of a document's vectors or terms as all documents are compared; None where it is not known.

    A compressed search also reads the stored vectors of the documents that it scores again.
    """
    sizes = []
    for run in row.runs.values():
        if measured := run.record.texts.get("bytes_per_document"):  # of late interaction and learned sparse terms
            sizes.append(measured)
            continue
        encoder, width = run.record.settings["encoder"], _get_compared_width(run.record)
        if not encoder or not width or run.record.cards["method"].get("kind", "dense") != "dense":
            return None
        vector_format = VECTOR_FORMATS[encoder.get("vector_dtype", "fp32")]
        compressed = count_compressed_bytes(run.record.settings["retriever"], width)
        sizes.append(compressed or width * vector_format.bytes_per_number + vector_format.bytes_per_vector)
    return max(sizes, default=None)


COST_COLUMNS: dict[str, CostColumn] = {
    "parameters": ("parameters (M)", _get_millions("parameters"), ",.0f"),
    "active_parameters": ("active (M)", _get_millions("active_parameters"), ",.0f"),
    "embedding_parameters": ("embedding (M)", _get_millions("embedding_parameters"), ",.0f"),
    "weights": ("weights (MB)", _get_max_cost("weights_mb"), ",.0f"),
    "tokens_per_second": ("tokens/s", _get_mean_cost("tokens_per_second"), ",.0f"),
    "documents_per_second": ("docs/s", _get_mean_cost("documents_per_second"), ",.0f"),
    "peak_memory": ("peak memory (MB)", _get_max_cost("peak_memory_mb"), ",.0f"),
    "bytes_per_document": ("bytes/doc", compute_bytes_per_document, ",.0f"),
    "energy": ("kWh per 1M docs", compute_energy, ",.2f"),
    "price": ("price per 1M docs", compute_price, ",.2f"),
}


def select_cost_columns(board: Leaderboard) -> dict[str, CostColumn]:
    """The cost columns for which at least one row has a value."""
    return {name: cost for name, cost in COST_COLUMNS.items() if any(cost[1](row) is not None for row in board.rows)}


def build_table(board: Leaderboard, with_members: bool = False) -> LeaderboardTable:
    """A leaderboard as a table; a group of tasks is one column, followed by its members with `with_members`."""
    cost_columns = select_cost_columns(board)
    columns: list[str | None] = [None] if board.ranked_by is None else []
    for name, tasks in board.entries.items():
        columns += [name, *tasks] if with_members and tasks != (name,) else [name]
    heads = [
        "rank",
        "letters",
        "model",
        "method",
        *("average" if column is None else column for column in columns),
        INTERVAL_HEAD,
        *([MEAN_RANK_HEAD] if board.mean_ranks else []),
    ]
    lines = [_build_line(board, row, columns, cost_columns) for row in board.rows]
    empty_columns = len(cost_columns) + bool(board.mean_ranks)
    lines += [
        _build_published_line(board, published_row, columns, empty_columns) for published_row in board.published_rows
    ]
    return LeaderboardTable([*heads, *(title for title, _, _ in cost_columns.values())], lines, build_notes(board))


def _build_line(
    board: Leaderboard, row: LeaderboardRow, columns: list[str | None], cost_columns: dict[str, CostColumn]
) -> TableLine:
    row_rank = board.get_rank(row, board.ranked_by)
    rank = TableCell(str(row_rank.rank), row_rank.rank) if row_rank else TableCell(MISSING, None)
    shown_letters = row_rank.letters if row_rank else ""
    letters = TableCell(shown_letters or MISSING, shown_letters or None)
    names = [
        TableCell(row.model, row.model, ONE_SEED_MARK if has_one_seed(board, row) else ""),
        TableCell(row.label, row.label),
    ]
    scores = [_build_score_cell(board, row, column) for column in columns]
    cost_cells = []
    for _, measure, format_spec in cost_columns.values():
        value = measure(row)
        cost_cells.append(TableCell(MISSING if value is None else format(value, format_spec), value))
    interval = _build_interval_cell(row_rank)
    mean_rank = [_build_mean_rank_cell(board, row)] if board.mean_ranks else []
    return TableLine([rank, letters, *names, *scores, interval, *mean_rank, *cost_cells], row)


def _build_mean_rank_cell(board: Leaderboard, row: LeaderboardRow) -> TableCell:
    mean_rank = board.get_mean_rank(row)
    if mean_rank is None:
        return TableCell(MISSING, None)
    low, high = mean_rank.interval
    return TableCell(f"{mean_rank.value:.1f} ({low:.1f}–{high:.1f})", mean_rank.value)


def _build_interval_cell(row_rank: Any) -> TableCell:
    if row_rank is None:
        return TableCell(MISSING, None)
    low, high = row_rank.interval
    return TableCell(f"{100 * low:.1f}–{100 * high:.1f}", f"{100 * low:.4f}–{100 * high:.4f}")


def _build_score_cell(board: Leaderboard, row: LeaderboardRow, column: str | None) -> TableCell:
    score = board.compute_score(row, column)
    if score is not None:
        exposures = (
            {row.get_training_exposure(task) for task in board.entries.get(column, (column,))} if column else {"unseen"}
        )
        return TableCell(
            f"{100 * score:.2f}",
            100 * score,
            "".join(EXPOSURE_MARKS[exposure] for exposure in sorted(exposures)) + _mark_extreme_score(row, column),
            column,
        )
    if column in row.failures:
        return TableCell(row.failures[column].status, None, task=column)
    return TableCell(MISSING, None, task=column)


def _mark_extreme_score(row: LeaderboardRow, column: str | None) -> str:
    run = row.runs.get(column or "")
    return EXTREME_MARK if run and explain_extreme_score(run.score, len(run.values)) else ""


def _build_published_line(
    board: Leaderboard, published_row: PublishedRow, columns: list[str | None], empty_columns: int
) -> TableLine:
    scores = [
        published_row.compute_average(board.suite, board.tasks)
        if column is None
        else published_row.compute_score(column, board.entries.get(column, (column,)))
        for column in columns
    ]
    cells = [TableCell(MISSING if x is None else f"{100 * x:.2f}", None if x is None else 100 * x) for x in scores]
    names = [
        TableCell(published_row.model, published_row.model, PUBLISHED_MARK),
        TableCell(f"published: {published_row.table.name}", published_row.table.name),
    ]
    missing = TableCell(MISSING, None)
    return TableLine([missing, missing, *names, *cells, missing, *[missing] * empty_columns], published=published_row)
