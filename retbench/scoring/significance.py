"""Significance: is the difference between models larger than chance over queries explains?

Everything here works on one score per query, the same queries in the same order for every model. Tests are
randomisation tests: if two models were equal, exchanging their scores on any query would change nothing, so the
observed difference is compared with those after random exchanges. No distribution is assumed, and a seed fixes the
answer. When several models are compared, Holm's correction keeps the probability of any false claim below alpha.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from string import ascii_letters
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retbench.errors import DataError

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats
Pairs = list[tuple[int, int]]

# Up to this number of queries all 4096 sign flips are tried, which is less work than sampling.
MAX_EXACT_QUERIES = 12
# Numbers per chunk of rounds: 32 MiB of float64.
CHUNK_NUMBERS = 1 << 22
# A relative difference below this is float noise, not a difference between models.
ROUNDING_ERROR = 1e-12


class ConfidenceInterval(NamedTuple):
    """A confidence interval of a mean."""

    low: float
    high: float


class WinCounts(NamedTuple):
    """The numbers of queries on which the first model is better than, equal to, and worse than the second."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class ModelRank:
    """A model's rank: 1 + the number of significantly better models; models that share a letter do not differ."""

    rank: int
    letters: str


def compute_paired_p_value(a: Values, b: Values, rounds: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean difference: exact for few queries, else by random sign flips."""
    return _compute_p_values(_build_pair_table(a, b), [(0, 1)], rounds, seed)[0]


def compute_bootstrap_interval(
    values: Values, level: float = 0.95, rounds: int = 10_000, seed: int = 0
) -> ConfidenceInterval:
    """Return the percentile interval of the mean over resampled queries."""
    column = _build_score_table({"the model": values})[:, 0]
    generator = np.random.default_rng(seed)
    means = [
        column[generator.integers(len(column), size=(rows, len(column)), dtype=np.int32)].mean(axis=1)
        for rows in _split_rounds(rounds, len(column))
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return ConfidenceInterval(float(low), float(high))


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's method; the order is kept."""
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for count_done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - count_done) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def compute_effect_size(a: Values, b: Values) -> float:
    """Return Cohen's d of the paired differences; 0 if they do not vary, because their deviation is 0."""
    table = _build_pair_table(a, b)
    difference = table[:, 0] - table[:, 1]
    if len(difference) == 1 or np.ptp(difference) <= ROUNDING_ERROR * np.abs(table).max():
        return 0.0
    return float(difference.mean() / difference.std(ddof=1))


def compute_detectable_difference(a: Values, b: Values) -> float | None:
    """Return the mean difference that a test of these queries would detect with a power of 80%."""
    table = _build_pair_table(a, b)
    if len(table) == 1:
        return None
    normal, spread = NormalDist(), float((table[:, 0] - table[:, 1]).std(ddof=1))
    return (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * spread / math.sqrt(len(table))


def count_wins(a: Values, b: Values) -> WinCounts:
    """Count the queries that the first model wins, ties and loses; a difference of float noise is a tie."""
    table = _build_pair_table(a, b)
    difference = table[:, 0] - table[:, 1]
    difference[np.abs(difference) <= ROUNDING_ERROR * np.abs(table).max(axis=1)] = 0.0
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return WinCounts(won, len(difference) - won - lost, lost)


def rank_models(scores: Mapping[str, Values], alpha: float = 0.05) -> dict[str, ModelRank]:
    """Rank the models by their scores per query; all pairs are tested as one family."""
    table = _build_score_table(scores)
    means = table.mean(axis=0)
    order = [int(model) for model in np.argsort(-means, kind="stable")]
    pairs = list(itertools.combinations(order, 2))
    # With too few rounds the smallest possible p-value would not survive the correction for a large family.
    rounds = max(10_000, math.ceil(2 * len(pairs) / alpha))
    adjusted = adjust_p_values(_compute_p_values(table, pairs, rounds, seed=0))
    different_pairs = [pair for pair, p_value in zip(pairs, adjusted, strict=True) if p_value <= alpha]
    letters = _assign_letters(order, different_pairs)
    beaten_models = [worse for _, worse in different_pairs]
    return {name: ModelRank(1 + beaten_models.count(model), letters[model]) for model, name in enumerate(scores)}


def _build_score_table(scores: Mapping[str, Values]) -> Floats:
    """Return a table with a row per query and a column per model."""
    sizes = {len(values) for values in scores.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(
            f"the scores cannot be paired: models have {sorted(sizes)} queries", "compare runs over the same queries"
        )
    table = np.column_stack([np.asarray(values, dtype=np.float64) for values in scores.values()])
    for name, column in zip(scores, table.T, strict=True):
        if not np.isfinite(column).all():
            raise DataError(f"{name} has a score that is not a number", "score that run again")
    return table


def _build_pair_table(a: Values, b: Values) -> Floats:
    return _build_score_table({"the first model": a, "the second model": b})


def _split_rounds(rounds: int, width: int) -> Iterator[int]:
    """Yield row counts that sum to `rounds`, each small enough for memory.

    They are multiples of 8, so random numbers are drawn in whole words and the result does not depend on the chunks.
    """
    step = max(8, CHUNK_NUMBERS // width // 8 * 8)
    for start in range(0, rounds, step):
        yield min(step, rounds - start)


def _compute_p_values(table: Floats, pairs: Pairs, rounds: int, seed: int) -> list[float]:
    """Return one p-value per pair of columns, all from the same sign flips.

    A flip turns the difference a - b of a query into b - a. The flipped sum of a pair is the difference of two
    flipped columns, so a round costs one product per model, not one per pair.
    """
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    totals = table.sum(axis=0)
    sizes = np.abs(table).sum(axis=0)
    observed = np.abs(totals[first] - totals[second]) - ROUNDING_ERROR * (sizes[first] + sizes[second])
    extreme, tried = np.zeros(len(pairs), dtype=np.int64), 0
    for signs in _draw_signs(len(table), max(table.shape[1], len(pairs)), rounds, seed):
        flipped = signs @ table
        extreme += (np.abs(flipped[:, first] - flipped[:, second]) >= observed).sum(axis=0)
        tried += len(signs)
    return [float(count) / tried for count in extreme]


def _draw_signs(queries: int, width: int, rounds: int, seed: int) -> Iterator[Floats]:
    """Yield chunks of sign flips, one per row: all if they are few, else the observed one and `rounds` random ones.

    The observed signs are a possible outcome too; without them a p-value could be 0.
    """
    if queries <= MAX_EXACT_QUERIES:
        yield np.array(list(itertools.product((1.0, -1.0), repeat=queries)))
        return
    yield np.ones((1, queries))
    generator = np.random.default_rng(seed)
    for rows in _split_rounds(rounds, max(queries, width)):
        octets = generator.integers(256, size=(rows, -(-queries // 8)), dtype=np.uint8)
        yield np.unpackbits(octets, axis=1, count=queries).astype(np.float64) * 2 - 1


def _assign_letters(order: Sequence[int], different: Iterable[tuple[int, int]]) -> dict[int, str]:
    """Build the compact letter display by insert and absorb (Piepho 2004).

    A letter is a maximal group of models without a difference. Each pair that differs splits every group with both;
    a group inside another is absorbed. `order` and the letters are best first.
    """
    groups = [frozenset(order)]
    for pair in different:
        split = {group - {model} for group in groups for model in pair if group.issuperset(pair)}
        split.update(group for group in groups if not group.issuperset(pair))
        groups = [group for group in split if not any(group < other for other in split)]
    position = {model: rank for rank, model in enumerate(order)}
    groups.sort(key=lambda group: sorted(position[model] for model in group))
    letter_groups = list(zip(groups, _iterate_letters(), strict=False))
    return {model: "".join(letter for group, letter in letter_groups if model in group) for model in order}


def _iterate_letters() -> Iterator[str]:
    """Yield a to z, A to Z, then the letters of other alphabets: one character for any number of groups."""
    yield from ascii_letters
    yield from (letter for letter in map(chr, itertools.count(128)) if letter.isalpha())
