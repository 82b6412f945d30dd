"""The notes below a leaderboard: what the scores are, how they were tested, and what is missing or doubtful."""

from dataclasses import asdict
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import DESCRIPTIVE_FIELDS
from retbench.records.extreme_score import explain_extreme_score
from retbench.reports.leaderboard import Leaderboard
from retbench.reports.ranks import ALPHA
from retbench.reports.seed_variation import ONE_SEED_MARK, has_one_seed
from retbench.reports.suite_average import group_tasks
from retbench.scoring.significance import MAX_GROUPS

MISSING = "–"
PUBLISHED_MARK = "†"
EXTREME_MARK = "!"


def build_notes(board: Leaderboard) -> list[str]:
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
        *_describe_mean_ranks(board),
        *_describe_rank_inversions(board),
        *_describe_sample_agreement(board),
        *_describe_missing_entries(board),
        _describe_fidelity(board),
        *_describe_seeds(board),
        *_describe_exposure(board),
        *_describe_failures(board),
        *_describe_extreme_scores(board),
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
    correction = "Holm's correction over 1 pair" if pairs == 1 else f"Holm's correction over {pairs} pairs"
    letters = (
        "Between rows that share a letter no significant difference was found, which does not show that they are equal."
        if row_ranks[0].letters
        else f"No letters: over {MAX_GROUPS} groups of rows have no significant difference; `compare` tests two rows."
    )
    text = (
        f"rank = 1 + the number of significantly better rows. {letters} "
        f"Paired randomisation test over {queries:,} queries, {correction}, alpha {ALPHA}."
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


def _describe_mean_ranks(board: Leaderboard) -> list[str]:
    if not board.mean_ranks:
        return []
    return [
        f"mean rank = the rank by score among the {len(board.mean_ranks)} complete rows, averaged over the "
        f"{len(board.entries)} entries of the average; 1 is the best on each. In parentheses its 95% interval, by a "
        "bootstrap over queries."
    ]


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


def _describe_sample_agreement(board: Leaderboard) -> list[str]:
    agreement = board.sample_agreement
    if agreement is None:
        return []
    low, high = agreement.interval
    return [
        f"The whole collection was run too. It orders {agreement.rows} of these rows with Kendall's tau "
        f"{agreement.tau:.2f} to this sample (95% interval {low:.2f} to {high:.2f}, by a bootstrap over queries; 1 is "
        f"the same order): {agreement.swapped_pairs} of {agreement.pairs} pairs are the other way round."
    ]


def _describe_missing_entries(board: Leaderboard) -> list[str]:
    suite_entries = group_tasks(board.suite)
    if board.ranked_by is not None or set(board.entries) == set(suite_entries) or not suite_entries:
        return []
    return [f"The average covers {len(board.entries)} of the {len(suite_entries)} entries of {board.suite}."]


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


def _describe_extreme_scores(board: Leaderboard) -> list[str]:
    """Name the scores of exactly 0 or 100, each explanation once."""
    cells: dict[str, list[str]] = {}
    for row in board.rows:
        for task, run in row.runs.items():
            if explanation := explain_extreme_score(run.score, len(run.values)):
                cells.setdefault(explanation, []).append(f"{row.model} {row.label} on {task}")
    return [f"{EXTREME_MARK} {', '.join(names)}: {explanation}." for explanation, names in cells.items()]
