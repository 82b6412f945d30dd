"""The leaderboard as a table of plain cells, built once and printed by every format."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import DESCRIPTIVE_FIELDS
from retbench.cards.user_config import load_user_config
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.published_tables import PublishedRow
from retbench.reports.ranks import ALPHA
from retbench.reports.seed_variation import ONE_SEED_MARK, has_one_seed, list_seed_groups
from retbench.reports.suite_average import group_tasks
from retbench.store.vector_formats import VECTOR_FORMATS

MISSING = "–"
EXPOSURE_MARKS = {"seen": "*", "unknown": "?", "unseen": ""}
PUBLISHED_MARK = "†"
INTERVAL_HEAD = "95% interval"


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


def cut_in_the_middle(name: str, length: int) -> str:
    """A long name without its middle: names that begin alike differ at their ends."""
    if len(name) <= length:
        return name
    end = length // 2 - 1
    return f"{name[: length - end - 1]}…{name[-end:]}"


CostColumn = tuple[str, Callable[[LeaderboardRow], float | None], str]


def _get_max_cost(name: str) -> Callable[[LeaderboardRow], float | None]:
    return lambda row: max(row.list_costs(name), default=None)


def _get_mean_cost(name: str) -> Callable[[LeaderboardRow], float | None]:
    return lambda row: fmean(values) if (values := row.list_costs(name)) else None


def _get_parameters_in_millions(row: LeaderboardRow) -> float | None:
    largest = max(row.list_costs("parameters"), default=None)
    return None if largest is None else largest / 1e6


def compute_price(row: LeaderboardRow) -> float | None:
    """The price of a million documents at the rates in retbench.toml; None for a machine without a rate."""
    rates, costs = load_user_config().prices or {}, []
    for run in row.runs.values():
        machine, speed = run.record.machine, run.record.cost.get("documents_per_second")
        rate = rates.get(str(machine.get("gpu"))) or rates.get(str(machine.get("cpu")))
        if rate is None or not speed:
            return None
        costs.append(rate * 1e6 / speed / 3600)
    return fmean(costs) if costs else None


def compute_bytes_per_document(row: LeaderboardRow) -> float | None:
    """The size of a document's vector as it is compared; None for lexical and sparse rows."""
    sizes = []
    for run in row.runs.values():
        encoder, shape = run.record.settings["encoder"], run.record.cards["model"].get("shape")
        if not encoder or not shape or run.record.cards["method"].get("kind", "dense") != "dense":
            return None
        vector_format = VECTOR_FORMATS[encoder.get("vector_dtype", "fp32")]
        width = encoder.get("dimensions") or shape["width"]
        sizes.append(width * vector_format.bytes_per_number + vector_format.bytes_per_vector)
    return max(sizes, default=None)


COST_COLUMNS: dict[str, CostColumn] = {
    "parameters": ("parameters (M)", _get_parameters_in_millions, ",.0f"),
    "weights": ("weights (MB)", _get_max_cost("weights_mb"), ",.0f"),
    "tokens_per_second": ("tokens/s", _get_mean_cost("tokens_per_second"), ",.0f"),
    "documents_per_second": ("docs/s", _get_mean_cost("documents_per_second"), ",.0f"),
    "peak_memory": ("peak memory (MB)", _get_max_cost("peak_memory_mb"), ",.0f"),
    "bytes_per_document": ("bytes/doc", compute_bytes_per_document, ",.0f"),
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
    ]
    lines = [_build_line(board, row, columns, cost_columns) for row in board.rows]
    lines += [
        _build_published_line(board, published_row, columns, len(cost_columns))
        for published_row in board.published_rows
    ]
    return LeaderboardTable([*heads, *(title for title, _, _ in cost_columns.values())], lines, _build_notes(board))


def _build_line(
    board: Leaderboard, row: LeaderboardRow, columns: list[str | None], cost_columns: dict[str, CostColumn]
) -> TableLine:
    row_rank = board.get_rank(row, board.ranked_by)
    rank = TableCell(str(row_rank.rank), row_rank.rank) if row_rank else TableCell(MISSING, None)
    letters = TableCell(row_rank.letters, row_rank.letters) if row_rank else TableCell(MISSING, None)
    names = [
        TableCell(row.model, row.model, ONE_SEED_MARK if has_one_seed(board, row) else ""),
        TableCell(row.label, row.label),
    ]
    scores = [_build_score_cell(board, row, column) for column in columns]
    cost_cells = []
    for _, measure, format_spec in cost_columns.values():
        value = measure(row)
        cost_cells.append(TableCell(MISSING if value is None else format(value, format_spec), value))
    return TableLine([rank, letters, *names, *scores, _build_interval_cell(row_rank), *cost_cells], row)


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
            "".join(EXPOSURE_MARKS[exposure] for exposure in sorted(exposures)),
            column,
        )
    if column in row.failures:
        return TableCell(row.failures[column].status, None, task=column)
    return TableCell(MISSING, None, task=column)


def _build_published_line(
    board: Leaderboard, published_row: PublishedRow, columns: list[str | None], cost_count: int
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
    return TableLine([missing, missing, *names, *cells, missing, *[missing] * cost_count], published=published_row)


def _build_notes(board: Leaderboard) -> list[str]:
    """The notes below the table: what the scores are, how they were tested, and what is missing."""
    shared_settings = "; ".join(f"{name} {value}" for name, value in board.shared_settings.items())
    notes = [f"{board.metric} × 100. {shared_settings}."]
    if board.differing_rules:
        rules = ", different ".join(board.differing_rules)
        notes.append(f"Not comparable with the first leaderboard of {board.title}: different {rules}.")
    if board.superseded_runs:
        notes.append(f"Older runs of the same cells, not shown: {board.superseded_runs}.")
    notes += [
        _describe_tests(board),
        *_describe_rank_inversions(board),
        *_describe_missing_entries(board),
        _describe_fidelity(board),
        *_describe_seeds(board),
        *_describe_exposure(board),
        *_describe_failures(board),
    ]
    tables = {row.table.name: row.table for row in board.published_rows}.values()
    for table in tables:
        description = f"{table.title}; published figures, not ranked or tested. Source: {table.source}."
        notes.append(" ".join(filter(None, (f"{PUBLISHED_MARK} {table.name}: {description}", table.caveat))))
    return [note for note in notes if note]


def _describe_tests(board: Leaderboard) -> str:
    row_ranks = [row_rank for row in board.rows if (row_rank := board.get_rank(row, board.ranked_by))]
    if len(row_ranks) < 2:
        return "No significance test: fewer than two rows are complete."
    queries = sum({t: len(run.values) for row in board.rows for t, run in row.runs.items()}.values())
    pairs = len(row_ranks) * (len(row_ranks) - 1) // 2
    text = (
        "rank = 1 + the number of significantly better rows. Between rows that share a letter no significant "
        "difference was found, which does not show that they are equal. "
        f"Paired randomisation test over {queries:,} queries, Holm's correction over {pairs} pairs, alpha {ALPHA}."
    )
    if board.ranked_by is None and row_ranks[0].rank_over_tasks is None:
        text += f" {len(board.tasks)} tasks are too few for a test with tasks as units."
    elif board.ranked_by is None:
        text += (
            " Ranks with tasks as units, in the order of the rows: "
            + ", ".join(str(row_rank.rank_over_tasks) for row_rank in row_ranks)
            + "."
        )
    return text


def _describe_rank_inversions(board: Leaderboard) -> list[str]:
    """Explain every row that has a better rank than a row above it, although its score is lower."""
    worst, explained = 0, []
    for row in board.rows:
        if (row_rank := board.get_rank(row, board.ranked_by)) is None:
            continue
        if row_rank.rank < worst:
            explained.append(f"{row.model} {row.label} (rank {row_rank.rank})")
        worst = max(worst, row_rank.rank)
    if not explained:
        return []
    return [
        f"A lower score and a better rank than a row above: {', '.join(explained)}. Fewer rows are significantly "
        "better, because the differences to them vary more from query to query."
    ]


def _describe_missing_entries(board: Leaderboard) -> list[str]:
    suite_entries = group_tasks(board.suite)
    if board.ranked_by is not None or set(board.entries) == set(suite_entries) or not suite_entries:
        return []
    return [f"The average covers {len(board.entries)} of the {len(suite_entries)} entries of {board.suite}."]


def build_seed_table(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the trainings with several seeds: mean and range of each score."""
    seed_groups = list_seed_groups(board)
    columns = list(dict.fromkeys(column for group in seed_groups for column in group.score_ranges))
    heads = ["trained", "method", "seeds", *("average" if column is None else column for column in columns)]
    return heads, [
        [group.name, group.label, str(group.seeds), *(str(group.score_ranges.get(name, MISSING)) for name in columns)]
        for group in seed_groups
    ]


SEED_RANGE_NOTE = "Over seeds: mean (lowest–highest). Differences within this range may be seed noise."


def _describe_fidelity(board: Leaderboard) -> str:
    """How closely each method follows its source."""
    records = [run.record for row in board.rows for run in row.runs.values()]
    fidelity_by_method = {
        record.method: _get_fidelity(record.cards["method"]) for record in records if record.cards.get("method")
    }
    descriptions = [
        f"{kind}: {', '.join(names)}"
        for kind in ("exact", "reconstructed", "ours")
        if (names := sorted(name for name, fidelity in fidelity_by_method.items() if fidelity == kind))
    ]
    return f"Fidelity of the methods to their sources: {'; '.join(descriptions)}." if descriptions else ""


def _get_fidelity(stored_card: dict[str, Any]) -> str:
    """What the preset of that name says now, if it makes the same vectors: a source may have been read again."""
    presets = catalog.load_methods()
    preset = asdict(presets.find(stored_card["name"])) if stored_card["name"] in presets else {}
    vector_fields = {key: value for key, value in stored_card.items() if key not in DESCRIPTIVE_FIELDS}
    is_same = all(preset.get(key) == value for key, value in vector_fields.items())
    return str((preset if is_same else stored_card)["fidelity"])


def _describe_seeds(board: Leaderboard) -> list[str]:
    if not any(has_one_seed(board, row) for row in board.rows):
        return []
    return [
        f"{ONE_SEED_MARK} trained with one seed: a difference that is significant over queries may still be seed noise."
    ]


def _describe_exposure(board: Leaderboard) -> list[str]:
    exposures = {row.get_training_exposure(task) for row in board.rows for task in row.runs}
    explanations = {
        "seen": "* the model was trained on this collection.",
        "unknown": "? the model's training data is unknown.",
    }
    return [text for exposure, text in explanations.items() if exposure in exposures]


def _describe_failures(board: Leaderboard) -> list[str]:
    cells_by_cause: dict[tuple[str, str], list[str]] = {}
    for row in board.rows:
        for task, failure in row.failures.items():
            cells_by_cause.setdefault((failure.status, failure.error), []).append(f"{row.model} on {task}")
    notes = [f"{status}: {', '.join(cells)}: {error}." for (status, error), cells in cells_by_cause.items()]
    missing = sum(t not in row.runs and t not in row.failures for row in board.rows for t in board.tasks)
    return (
        [*notes, f"{MISSING} not run ({missing} cells). A row with missing cells has no average."] if missing else notes
    )
