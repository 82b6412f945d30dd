"""Significance: is the difference between models larger than chance over queries explains?

Everything here works on one score per query, the same queries in the same order for every model. Tests are
randomisation tests: if two models were equal, exchanging their scores on any query would change nothing, so the
observed difference is compared with those after every exchange. This assumes no shape of distribution. It assumes
exchangeability: the queries are independent, and without a difference between the models every exchange is as likely
as the observation. p-values depend on no seed. When several models are compared, Holm's correction keeps the
probability of any false claim below alpha.
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
from retbench.scoring.randomisation_test import PValueBounds, bound_p_values, compute_p_value

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats
Pairs = list[tuple[int, int]]

# With fewer queries no difference has a p-value of 0.05: the smallest is 2 / 2^queries.
MIN_SIGNIFICANT_QUERIES = 6
# With fewer queries the formula for the detectable difference promises more than the test can do.
MIN_QUERIES_FOR_POWER = 7
# Numbers per chunk: 32 MiB of float64.
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


def compute_paired_p_value(a: Values, b: Values) -> float:
    """Return the two-sided p-value of the mean difference by the randomisation test over queries."""
    table = _build_pair_table(a, b)
    return compute_p_value(table[:, 0], table[:, 1])


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
    """Return the mean difference that a test of these queries would detect with a power of 80%; None if there is none.

    The queries are taken to vary as these do. With few queries Student's t makes the figure as large as the
    randomisation test needs.
    """
    table = _build_pair_table(a, b)
    if len(table) < MIN_QUERIES_FOR_POWER:
        return None
    spread = float((table[:, 0] - table[:, 1]).std(ddof=1))
    quantiles = _compute_t_quantile(0.975, len(table) - 1) + _compute_t_quantile(0.8, len(table) - 1)
    return quantiles * spread / math.sqrt(len(table))


def _compute_t_quantile(level: float, freedom: int) -> float:
    """Return a quantile of Student's t by its expansion around the normal quantile: to 1% from six degrees on."""
    z = NormalDist().inv_cdf(level)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


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
    different_pairs = _find_different_pairs(table, pairs, alpha)
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


def _find_different_pairs(table: Floats, pairs: Pairs, alpha: float) -> Pairs:
    """Return the pairs whose p-value, with Holm's correction, is at most alpha.

    Most pairs are decided by bounds. The p-value of every other pair is computed, so no rank depends on a seed.
    """
    if not pairs:
        return []
    bounds = _bound_pairs(table, pairs)
    low, p_values, high = (values.copy() for values in bounds)
    while True:
        order = np.argsort(p_values, kind="stable")
        factors = np.empty(len(pairs))
        factors[order] = np.arange(len(pairs), 0, -1)
        undecided = np.flatnonzero((low < high) & (low * factors <= alpha) & (alpha < high * factors))
        if not len(undecided):
            break
        for index in undecided:
            first, second = pairs[index]
            low[index] = high[index] = p_values[index] = compute_p_value(table[:, first], table[:, second])
    adjusted = adjust_p_values(p_values.tolist())
    return [pair for pair, p_value in zip(pairs, adjusted, strict=True) if p_value <= alpha]


def _bound_pairs(table: Floats, pairs: Pairs) -> PValueBounds:
    """Bound the p-values of all pairs, as many at a time as memory allows."""
    step = max(1, CHUNK_NUMBERS // len(table))
    chunks = [np.array(pairs[start : start + step]) for start in range(0, len(pairs), step)]
    bounds = [bound_p_values((table[:, chunk[:, 0]] - table[:, chunk[:, 1]]).T) for chunk in chunks]
    return PValueBounds(*(np.concatenate(parts) for parts in zip(*bounds, strict=True)))


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
