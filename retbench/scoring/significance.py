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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from string import ascii_letters
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retbench.errors import DataError
from retbench.scoring.randomisation_test import PValueBounds, bound_p_value_on_grid, bound_p_values, compute_p_value

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats
Pairs = list[tuple[int, int]]

# With fewer queries no difference has a p-value of 0.05: the smallest is 2 / 2^queries.
MIN_SIGNIFICANT_QUERIES = 6
# With fewer queries the formula for the detectable difference promises more than the test can do.
MIN_QUERIES_FOR_POWER = 7
# How far rounding may move a sum, in its standard deviations: pairs that formulas leave open, then those still open.
PRECISIONS = (0.15, 0.03, 0.01, 0.003, 0.001)
# What rounding may do with a probability of this share of the smallest p-value that matters is left out.
NEGLIGIBLE = 1e-3
# Numbers per chunk: 32 MiB of float64.
CHUNK_NUMBERS = 1 << 22
MAX_GROUPS = 500  # of models without a difference; a model with more letters is no help to anybody
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
    (interval,) = compute_bootstrap_intervals({"the model": values}, level, rounds, seed)
    return interval


def compute_bootstrap_intervals(
    scores: Mapping[str, Values], level: float = 0.95, rounds: int = 10_000, seed: int = 0
) -> list[ConfidenceInterval]:
    """Return the interval of every model's mean, all over the same resampled queries."""
    tail = (1 - level) / 2
    ends = np.quantile(draw_bootstrap_means(scores, rounds, seed), [tail, 1 - tail], axis=0)
    return [ConfidenceInterval(float(low), float(high)) for low, high in ends.T]


def draw_bootstrap_means(scores: Mapping[str, Values], rounds: int, seed: int) -> Floats:
    """Return the means over resampled queries: a row per round, a column per model; a round draws once for all."""
    table = _build_score_table(scores)
    generator = np.random.default_rng(seed)
    means = [
        _count_draws(generator.integers(len(table), size=(rows, len(table)), dtype=np.int32)) @ table / len(table)
        for rows in _split_rounds(rounds, len(table))
    ]
    return np.concatenate(means)


def _count_draws(draws: NDArray[np.int32]) -> Floats:
    """Return how often each query was drawn: a row per round, a column per query."""
    rounds, queries = draws.shape
    places = draws + queries * np.arange(rounds)[:, None]
    return np.bincount(places.ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)


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
    times_beaten = Counter(worse for _, worse in different_pairs)
    return {name: ModelRank(1 + times_beaten[model], letters[model]) for model, name in enumerate(scores)}


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

    Holm's correction is a limit for all p-values, which depends on how many are below it. Most pairs are decided by
    cheap bounds of p-value and limit. The others get closer bounds, and at last the p-value itself, so no rank depends
    on a seed or on a bound.
    """
    if not pairs:
        return []
    limits = alpha / np.arange(len(pairs), 0, -1)  # of the smallest p-value, of the second smallest, ...
    low, high = _bound_pairs(table, pairs, limits[0])
    precisions = np.zeros(len(pairs), dtype=np.int64)
    while True:
        strictest, mildest = _find_limit(high, limits), _find_limit(low, limits)
        undecided = np.flatnonzero((low < high) & (low <= mildest) & (high > strictest))
        if not len(undecided):
            return [pair for pair, p_value in zip(pairs, high, strict=True) if p_value <= strictest]
        for index in undecided:
            low[index], high[index] = _narrow_p_value(table, pairs[index], precisions[index], limits[0])
        precisions[undecided] += 1


def _find_limit(p_values: Floats, limits: Floats) -> float:
    """Return the limit that Holm's correction sets: a p-value up to it is significant, any other is not."""
    over = np.flatnonzero(np.sort(p_values) > limits)
    return float(limits[over[0] if len(over) else -1])


def _narrow_p_value(table: Floats, pair: tuple[int, int], attempt: int, smallest_limit: float) -> tuple[float, float]:
    first, second = (table[:, model] for model in pair)
    if attempt < len(PRECISIONS):
        return bound_p_value_on_grid(first, second, PRECISIONS[attempt], NEGLIGIBLE * smallest_limit)
    p_value = compute_p_value(first, second)
    return p_value, p_value


def _bound_pairs(table: Floats, pairs: Pairs, smallest_limit: float) -> PValueBounds:
    """Bound the p-values of all pairs, as many at a time as memory allows."""
    step = max(1, CHUNK_NUMBERS // len(table))
    chunks = [np.array(pairs[start : start + step]) for start in range(0, len(pairs), step)]
    bounds = [bound_p_values((table[:, chunk[:, 0]] - table[:, chunk[:, 1]]).T, smallest_limit / 2) for chunk in chunks]
    return PValueBounds(*(np.concatenate(parts) for parts in zip(*bounds, strict=True)))


def _assign_letters(order: Sequence[int], different: Iterable[tuple[int, int]]) -> dict[int, str]:
    """Build the compact letter display (Piepho 2004): a letter is a maximal group of models without a difference.

    `order` and the letters are best first. There can be as many groups as subsets of the models, so over MAX_GROUPS
    no model gets a letter.
    """
    position = {model: rank for rank, model in enumerate(order)}
    alike = [((1 << len(order)) - 1) ^ (1 << rank) for rank in range(len(order))]  # of each model, as bits
    for first, second in different:
        alike[position[first]] &= ~(1 << position[second])
        alike[position[second]] &= ~(1 << position[first])
    found = list(itertools.islice(_iterate_maximal_groups(alike), MAX_GROUPS + 1))
    groups = sorted(tuple(_iterate_bits(group)) for group in found) if len(found) <= MAX_GROUPS else []
    letters = [""] * len(order)
    for group, letter in zip(groups, _iterate_letters(), strict=False):
        for rank in group:
            letters[rank] += letter
    return {model: letters[rank] for model, rank in position.items()}


def _iterate_maximal_groups(alike: list[int]) -> Iterator[int]:
    """Yield the maximal cliques of a graph by the algorithm of Bron and Kerbosch; sets are bits of whole numbers."""
    branches = [(0, (1 << len(alike)) - 1, 0)]  # the group so far, the nodes that may be added, those tried before
    while branches:
        group, candidates, done = branches.pop()
        if not candidates | done:
            yield group
            continue
        pivot = max(_iterate_bits(candidates | done), key=lambda node: (candidates & alike[node]).bit_count())
        for node in _iterate_bits(candidates & ~alike[pivot]):
            branches.append((group | 1 << node, candidates & alike[node], done & alike[node]))
            candidates, done = candidates & ~(1 << node), done | 1 << node


def _iterate_bits(number: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, from the lowest on."""
    while number:
        yield (number & -number).bit_length() - 1
        number &= number - 1


def _iterate_letters() -> Iterator[str]:
    """Yield a to z, A to Z, then the letters of other alphabets: one character for any number of groups."""
    yield from ascii_letters
    yield from (letter for letter in map(chr, itertools.count(128)) if letter.isalpha())
