"""Does a sample rank the models as the whole collection does? Kendall's tau-b of two leaderboards of one suite.

A sample (`--sample`) has fewer queries and fewer documents. Where a results folder has the runs of both, the ranking by
the sample is compared with the full one. The interval resamples queries; a drawn query counts in both rankings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow, get_scoring_rules
from retbench.reports.suite_average import compute_task_weights
from retbench.scoring.significance import ConfidenceInterval

MIN_ROWS = 3
ROUNDS = 2_000
LEVEL = 0.95
SEED = 0

Floats = NDArray[np.float64]
RowPair = tuple[LeaderboardRow, LeaderboardRow]  # of the sample, of the whole collection


@dataclass(frozen=True)
class SampleAgreement:
    """Kendall's tau-b between the ranking by a sample and the full one."""

    rows: int
    tau: float
    interval: ConfidenceInterval
    swapped_pairs: int  # pairs of rows that the two rankings order differently
    pairs: int


def find_sample_agreement(board: Leaderboard, boards: Sequence[Leaderboard]) -> SampleAgreement | None:
    """Compare the leaderboard of a sample with the full one; None without one, or with too few rows in both."""
    if not any(run.record.settings["sample"] for row in board.rows for run in row.runs.values()):
        return None  # else a thousand leaderboards would be compared with one another
    pairs = max((_pair_rows(board, other) for other in boards if other.suite == board.suite), key=len, default=[])
    if len(pairs) < MIN_ROWS:
        return None
    rng, weights = np.random.default_rng(SEED), compute_task_weights(board.suite, board.tasks)
    measured, drawn = np.zeros((2, 1, len(pairs))), np.zeros((2, ROUNDS, len(pairs)))
    for task in board.tasks:
        runs = [(sampled.runs[task], full.runs[task]) for sampled, full in pairs]
        measured += weights[task] * np.array([[[run.score for run in side]] for side in zip(*runs, strict=True)])
        drawn += weights[task] * _draw_means(runs, rng)
    taus = [compute_kendall_tau(*drawn[:, number]) for number in range(ROUNDS)]
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(taus, [tail, 1 - tail])
    orders = [np.sign(side[0][:, None] - side[0][None]) for side in measured]
    swapped = int(np.triu(orders[0] * orders[1] < 0).sum())
    tau = compute_kendall_tau(measured[0, 0], measured[1, 0])
    interval = ConfidenceInterval(float(low), float(high))
    return SampleAgreement(len(pairs), tau, interval, swapped, len(pairs) * (len(pairs) - 1) // 2)


def compute_kendall_tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b, which allows ties; nan if one ranking has only ties."""
    orders = [np.sign(values[:, None] - values[None]) for values in (a, b)]
    sizes = [float((order != 0).sum()) for order in orders]
    return float((orders[0] * orders[1]).sum() / np.sqrt(sizes[0] * sizes[1])) if all(sizes) else float("nan")


def _pair_rows(board: Leaderboard, other: Leaderboard) -> list[RowPair]:
    """The complete rows of a sample's leaderboard, each with its row on the full one; empty if they do not belong
    together."""
    full_rows = {(row.model, row.label): row for row in other.rows}
    pairs = [(row, full_rows[row.model, row.label]) for row in board.rows if (row.model, row.label) in full_rows]
    return [pair for pair in pairs if all(_is_sample_of(pair, task) for task in board.tasks)]


def _is_sample_of(pair: RowPair, task: str) -> bool:
    """Whether the first run is a sample of the second one: all rules but the sample and the texts are the same."""
    sampled, full = (row.runs.get(task) for row in pair)
    if sampled is None or full is None or full.record.settings["sample"] or not sampled.record.settings["sample"]:
        return False
    rules = [get_scoring_rules(run.record.settings) for run in (sampled, full)]
    names = (rules[0].keys() | rules[1].keys()) - {"sample", "collection"}
    return all(rules[0].get(name) == rules[1].get(name) for name in names) and set(sampled.queries) <= set(full.queries)


def _draw_means(runs: Sequence[tuple[ScoredRun, ScoredRun]], rng: np.random.Generator) -> Floats:
    """Means of resampled queries, for the sample and the whole collection, by round and row."""
    queries = runs[0][1].queries
    position = {query: number for number, query in enumerate(queries)}
    columns = [position[query] for query in runs[0][0].queries]
    counts = rng.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=ROUNDS).astype(np.float64)
    sampled_counts = counts[:, columns]
    sampled, full = (np.stack([pair[side].values for pair in runs], axis=1) for side in (0, 1))
    totals = np.maximum(sampled_counts.sum(axis=1, keepdims=True), 1.0)
    return np.stack([sampled_counts @ sampled / totals, counts @ full / len(queries)])
