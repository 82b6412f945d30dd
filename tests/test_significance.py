"""Significance: scipy and brute force as references, corrections and letters by hand, correct error rates."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from retbench.errors import DataError
from retbench.scoring import randomisation_test, significance
from retbench.scoring.significance import (
    ConfidenceInterval,
    ModelRank,
    WinCounts,
    adjust_p_values,
    compute_bootstrap_interval,
    compute_bootstrap_intervals,
    compute_detectable_difference,
    compute_effect_size,
    compute_paired_p_value,
    count_wins,
    rank_models,
)

Floats = NDArray[np.float64]
scores = st.lists(st.floats(0, 1), min_size=1, max_size=10)


def _draw_paired_scores(queries: int, gap: float, seed: int = 1) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    a = generator.random(queries)
    return a, a + gap + 0.1 * generator.standard_normal(queries)


def _compute_by_brute_force(a: list[float], b: list[float]) -> float:
    difference = [x - y for x, y in zip(a, b, strict=True)]
    observed = abs(math.fsum(difference))
    sums = [
        abs(math.fsum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(difference))
    ]
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)


def test_exact_p_value_computed_by_hand() -> None:
    # All three differences are positive: of 8 flips only all-plus and all-minus reach the sum.
    assert compute_paired_p_value([0.5, 0.6, 0.9], [0.1, 0.5, 0.7]) == 2 / 8
    # 0.1 + 0.2 - 0.3 is not 0 in floats; every flip is as extreme as a difference of nothing.
    assert compute_paired_p_value([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]) == 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=7))
def test_few_queries_are_enumerated(pairs: list[tuple[int, int]]) -> None:
    a, b = [x / 10 for x, _ in pairs], [y / 10 for _, y in pairs]
    assert compute_paired_p_value(a, b) == _compute_by_brute_force(a, b)


@pytest.mark.parametrize("queries", [5, 12])
def test_exact_equals_scipy(queries: int) -> None:
    a, b = _draw_paired_scores(queries, gap=0.05)
    assert compute_paired_p_value(a, b) == pytest.approx(_scipy_p_value(a, b, rounds=5000), abs=1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.02])
def test_p_value_agrees_with_scipy_sampling(gap: float) -> None:
    a, b = _draw_paired_scores(200, gap)
    ours, theirs = compute_paired_p_value(a, b), _scipy_p_value(a, b, rounds=9999)
    # Four standard errors of an estimate from 10,000 rounds.
    assert abs(ours - theirs) <= 4 * math.sqrt(max(ours * (1 - ours), 1e-4) / 10_000)


def _scipy_p_value(a: Floats, b: Floats, rounds: int, seed: int = 3) -> float:
    def statistic(x: Floats, y: Floats, axis: int) -> Floats:
        return np.asarray(np.mean(x - y, axis=axis))

    found = stats.permutation_test(
        (a, b),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=rounds,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


@pytest.mark.parametrize("queries", [16, 20, 31, 50])
def test_p_value_of_signed_ranks_equals_scipy_wilcoxon(queries: int) -> None:
    ranks = np.arange(1, queries + 1) * np.where(np.random.default_rng(queries).random(queries) < 0.33, -1.0, 1.0)
    expected = stats.wilcoxon(ranks, method="exact").pvalue
    for scale in (1.0, 0.1, 1 / 77):
        a, b = np.maximum(ranks * scale, 0), np.maximum(-ranks * scale, 0)
        assert compute_paired_p_value(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("wins", "losses"), [(15, 5), (40, 20), (125, 75), (3660, 3340), (31, 0)])
def test_p_value_of_wins_and_losses_equals_scipy_sign_test(wins: int, losses: int) -> None:
    # Every exchange with the same number of wins is a tie with the observed sum.
    a, b = [1.0] * wins + [0.0] * (losses + 9), [0.0] * wins + [1.0] * losses + [0.0] * 9
    expected = stats.binomtest(wins, wins + losses).pvalue
    assert compute_paired_p_value(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("queries", [12, 18, 20])
def test_p_value_equals_full_enumeration(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _draw_paired_scores(queries, gap=0.05)
    signs = ((np.arange(2**queries)[:, None] >> np.arange(queries)) & 1) * 2.0 - 1
    expected = float((np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-12).mean())
    assert compute_paired_p_value(a, b) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(randomisation_test, "MAX_ENUMERATED", 0)
    assert compute_paired_p_value(a, b) == pytest.approx(expected, rel=2e-3)  # 2 ** 20 sums lie close to each other


@pytest.mark.parametrize("queries", [50, 300, 2000])
def test_a_finer_grid_gives_the_same_p_value(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(queries)
    a = generator.random(queries) ** 3
    b = a + generator.normal(0.2 / math.sqrt(queries), 0.1, queries)
    p_value = compute_paired_p_value(a, b)
    monkeypatch.setattr(randomisation_test, "STEPS_PER_DEVIATION", 200_000)
    assert 1e-6 < p_value < 0.2
    assert compute_paired_p_value(a, b) == pytest.approx(p_value, rel=1e-3)


def test_p_value_is_never_zero_and_order_does_not_matter() -> None:
    a, b = _draw_paired_scores(100, gap=5.0)
    assert 0 < compute_paired_p_value(a, b) <= 1e-12
    a, b = _draw_paired_scores(200, gap=0.01)
    assert compute_paired_p_value(a, b) == compute_paired_p_value(b, a)
    assert compute_paired_p_value(a, a) == 1.0
    assert compute_paired_p_value(100 * a, 100 * b) == pytest.approx(compute_paired_p_value(a, b), rel=1e-3)


def test_equal_differences_are_ties_although_floats_round_them() -> None:
    # Differences of a tenth, written in ways that differ in the last bit: all exchanges with 20 pluses are ties.
    a = [0.3, 0.7, 0.4, 0.9, 0.8] * 8
    b = [0.2, 0.6, 0.3, 0.8, 0.7] * 8
    swapped = ([*b[:10], *a[10:]], [*a[:10], *b[10:]])
    assert compute_paired_p_value(*swapped) == pytest.approx(stats.binomtest(30, 40).pvalue, rel=1e-9)


def _draw_scores_of_many_kinds(seed: int, queries: int) -> Floats:
    """Twelve models on one kind of score: 0 or 1, nDCG with one relevant document, continuous, or rare wins."""
    generator = np.random.default_rng(seed)
    levels = np.linspace(0.3, 0.6, 12)
    ranks = np.minimum(1 + generator.geometric(levels, (queries, 12)), 12)
    return [
        (generator.random((queries, 12)) < levels).astype(float),
        np.where(ranks > 10, 0.0, 1 / np.log2(ranks)),
        np.clip(generator.normal(levels, 0.25, (queries, 12)), 0, 1),
        (generator.random((queries, 12)) < levels / 10).astype(float),
    ][seed % 4]


@pytest.mark.parametrize("queries", [6, 9, 14, 40, 150])
def test_bounds_contain_the_p_value(queries: int) -> None:
    for seed in range(8):
        table = _draw_scores_of_many_kinds(seed, queries)
        pairs = list(itertools.combinations(range(12), 2))
        exact = np.array([compute_paired_p_value(table[:, a], table[:, b]) for a, b in pairs])
        for smallest in (0.0, 1e-3):
            differences = np.array([table[:, a] - table[:, b] for a, b in pairs])
            bounds = randomisation_test.bound_p_values(differences, smallest)
            assert (bounds.low <= exact * (1 + 1e-6)).all()
            assert (exact <= np.maximum(bounds.high, 1e-12) * (1 + 1e-6)).all()


@pytest.mark.parametrize("large", [7, 11, 25])
def test_bounds_contain_the_p_value_of_a_few_large_and_many_small_differences(large: int) -> None:
    """Such sums have gaps; and if all large differences agree, the sum is near its end."""
    generator = np.random.default_rng(large)
    for losses, noise in itertools.product((0, 1, 2), (1e-3, 0.01, 0.1)):
        difference = np.concatenate([np.ones(large), generator.normal(0, noise, 30)])
        difference[:losses] = -1.0
        exact = compute_paired_p_value(difference, np.zeros(len(difference)))
        low, high = randomisation_test.bound_p_values(difference[None], 0.0)
        assert low[0] <= exact <= max(high[0], 1e-12), (losses, noise)


@pytest.mark.parametrize("queries", [14, 40, 150])
def test_bounds_on_a_grid_contain_the_p_value(queries: int) -> None:
    for seed in range(4):
        table = _draw_scores_of_many_kinds(seed, queries)
        for first, second in itertools.combinations(range(0, 12, 2), 2):
            exact = compute_paired_p_value(table[:, first], table[:, second])
            widths = []
            for precision in (0.3, 0.03):
                low, high = randomisation_test.bound_p_value_on_grid(
                    table[:, first], table[:, second], precision, negligible=1e-8
                )
                assert low <= exact * (1 + 1e-9)
                assert exact <= high * (1 + 1e-9)
                widths.append(high - low)
            assert widths[1] <= widths[0]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30))
def test_the_limit_of_p_values_is_that_of_holm(p_values: list[float]) -> None:
    limits = 0.05 / np.arange(len(p_values), 0, -1)
    limit = significance._find_limit(np.array(p_values), limits)
    adjusted = adjust_p_values(p_values)
    assert [p <= limit for p in p_values] == [p <= 0.05 * (1 + 1e-12) for p in adjusted]


def test_a_large_board_needs_few_p_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formulas decide most pairs, coarse grids decide most others. Only the last few p-values are computed."""
    table = np.clip(np.random.default_rng(5).normal(np.linspace(0.3, 0.6, 40), 0.25, (100, 40)), 0, 1)
    columns = {str(model): table[:, model] for model in range(40)}
    calls = {"bound_p_value_on_grid": 0, "compute_p_value": 0}
    for name in calls:
        monkeypatch.setattr(significance, name, _count_calls(calls, name))
    found = rank_models(columns)
    assert calls["compute_p_value"] <= 5, calls
    assert calls["bound_p_value_on_grid"] <= 200, calls
    monkeypatch.setattr(significance, "PRECISIONS", ())
    assert rank_models(columns) == found
    assert calls["compute_p_value"] > 60, calls


def _count_calls(calls: dict[str, int], name: str) -> Callable[..., Any]:
    function = getattr(significance, name)

    def count_call(*arguments: Any) -> Any:
        calls[name] += 1
        return function(*arguments)

    return count_call


@pytest.mark.parametrize("seed", range(8))
def test_ranks_are_those_of_exact_p_values(seed: int) -> None:
    table = _draw_scores_of_many_kinds(seed, 60)
    columns = {f"m{number}": table[:, number] for number in range(12)}
    pairs = list(itertools.combinations(columns, 2))
    adjusted = adjust_p_values([compute_paired_p_value(columns[a], columns[b]) for a, b in pairs])
    beaten = [
        min(pair, key=lambda name: columns[name].mean()) for pair, p in zip(pairs, adjusted, strict=True) if p <= 0.05
    ]
    assert {name: rank.rank for name, rank in rank_models(columns).items()} == {
        name: 1 + beaten.count(name) for name in columns
    }
    assert beaten or seed % 4 in (0, 3)


def test_a_rank_near_alpha_does_not_depend_on_a_draw() -> None:
    """Ten thousand random exchanges print a p-value below or above 0.05, by their seed."""
    a, b = _draw_paired_scores(200, gap=0.0104, seed=12)
    p_value = compute_paired_p_value(a, b)
    sampled = [_scipy_p_value(a, b, rounds=9999, seed=seed) for seed in range(12)]
    assert min(sampled) < p_value < max(sampled)
    assert min(sampled) <= 0.05 < max(sampled), (p_value, sampled)
    assert abs(np.mean(sampled) - p_value) < 4 * math.sqrt(p_value / (12 * 9999))
    assert rank_models({"a": a, "b": b}, alpha=p_value * 1.0001)["a"].rank == 2
    assert rank_models({"a": a, "b": b}, alpha=p_value * 0.9999)["a"].rank == 1


def test_the_false_positive_rate_is_as_promised() -> None:
    p_values = [compute_paired_p_value(*_draw_paired_scores(30, gap=0.0, seed=seed)) for seed in range(600)]
    for level in (0.05, 0.2, 0.5):
        rate = sum(p_value <= level for p_value in p_values) / 600
        assert abs(rate - level) < 4 * math.sqrt(level * (1 - level) / 600)


def test_chunking_does_not_change_the_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _draw_paired_scores(77, gap=0.01)
    whole = compute_paired_p_value(a, b), compute_bootstrap_interval(a), rank_models({"a": a, "b": b, "c": b + 0.01})
    sizes = list(significance._split_rounds(1000, 77))
    monkeypatch.setattr(significance, "CHUNK_NUMBERS", 77 * 30)
    assert (sizes, list(significance._split_rounds(50, 77))) == ([1000], [24, 24, 2])
    assert (
        compute_paired_p_value(a, b),
        compute_bootstrap_interval(a),
        rank_models({"a": a, "b": b, "c": b + 0.01}),
    ) == whole


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_equals_scipy(level: float) -> None:
    values = np.random.default_rng(2).random(300) ** 3
    generator = np.random.default_rng(8)
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=10_000, method="percentile", rng=generator
    ).confidence_interval
    ours = compute_bootstrap_interval(values, level)
    # The ends of two bootstraps differ by their own sampling: a few hundredths of the standard error.
    error = float(values.std() / math.sqrt(300))
    assert ours.low == pytest.approx(found.low, abs=0.12 * error)
    assert ours.high == pytest.approx(found.high, abs=0.12 * error)


def test_intervals_of_several_models_are_those_of_each() -> None:
    columns = {str(seed): np.random.default_rng(seed).random(70) ** 3 for seed in range(5)}
    together = compute_bootstrap_intervals(columns)
    for interval, column in zip(together, columns.values(), strict=True):
        assert interval == pytest.approx(compute_bootstrap_interval(column), abs=1e-14)
        draws = np.random.default_rng(0).integers(70, size=(10_000, 70), dtype=np.int32)
        assert interval == pytest.approx(np.quantile(column[draws].mean(axis=1), [0.025, 0.975]), abs=1e-14)


def test_interval_of_few_queries_computed_by_hand() -> None:
    # Means of two draws from 0 and 1 are 0, 1/2 and 1, with chances 1/4, 1/2 and 1/4.
    assert compute_bootstrap_interval([0.0, 1.0]) == ConfidenceInterval(0.0, 1.0)
    assert compute_bootstrap_interval([0.0, 1.0], level=0.4) == ConfidenceInterval(0.5, 0.5)
    assert compute_bootstrap_interval([0.25]) == ConfidenceInterval(0.25, 0.25)
    assert compute_bootstrap_interval([0.5] * 40) == ConfidenceInterval(0.5, 0.5)


def test_interval_narrows_with_the_level_and_follows_the_seed() -> None:
    values = np.random.default_rng(2).random(50)
    wide, narrow = compute_bootstrap_interval(values, 0.99), compute_bootstrap_interval(values, 0.5)
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high
    once, again, other = (compute_bootstrap_interval(values, seed=seed) for seed in (1, 1, 2))
    assert once == again != other


def test_holm_computed_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 is lifted to the one before it.
    assert adjust_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_p_values([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_p_values([0.02]) == [0.02]
    assert adjust_p_values([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = adjust_p_values(p_values)
    assert all(p <= q <= min(1.0, p * len(p_values)) for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


@pytest.mark.parametrize("queries", [7, 8, 10, 14, 20])
def test_the_detectable_difference_has_power_0_8(queries: int) -> None:
    generator = np.random.default_rng(3)
    detectable = np.mean(
        [compute_detectable_difference(generator.normal(size=queries), np.zeros(queries)) or 0 for _ in range(400)]
    )
    difference = detectable / _mean_of_a_sample_deviation(queries)
    p_values = [compute_paired_p_value(generator.normal(difference, 1, queries), np.zeros(queries)) for _ in range(600)]
    power = sum(p_value <= 0.05 for p_value in p_values) / 600
    assert 0.73 < power < 0.87


def _mean_of_a_sample_deviation(queries: int) -> float:
    """The mean of the standard deviation of a sample of a standard normal distribution."""
    log_ratio = math.lgamma(queries / 2) - math.lgamma((queries - 1) / 2)
    return math.sqrt(2 / (queries - 1)) * math.exp(log_ratio)


def test_the_detectable_difference_of_many_queries_is_the_normal_one() -> None:
    reach = compute_detectable_difference(np.random.default_rng(3).normal(size=5000), np.zeros(5000))
    assert reach == pytest.approx(2.8016 / math.sqrt(5000), rel=0.05)


@pytest.mark.parametrize("queries", range(1, 7))
def test_few_queries_have_no_detectable_difference(queries: int) -> None:
    a, b = np.linspace(0.5, 1.0, queries), np.zeros(queries)
    assert (compute_paired_p_value(a, b) <= 0.05) == (queries >= significance.MIN_SIGNIFICANT_QUERIES)
    assert compute_detectable_difference(a, b) is None


def test_effect_size_computed_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1.
    assert compute_effect_size([0.6, 0.7, 0.8], [0.5, 0.5, 0.5]) == pytest.approx(2.0)
    assert compute_effect_size([0.5, 0.5, 0.5], [0.6, 0.7, 0.8]) == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [([0.5, 0.25], [0.5, 0.25]), ([0.7, 0.4], [0.4, 0.1]), ([0.9], [0.4])],
    ids=["equal", "constant up to rounding", "one query"],
)
def test_effect_size_without_variance_is_zero(a: list[float], b: list[float]) -> None:
    assert compute_effect_size(a, b) == 0.0


def test_win_counts_computed_by_hand() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit only: a tie.
    assert count_wins([1.0, 0.5, 0.2, 0.1 + 0.2, 0.0], [0.5, 0.5, 0.3, 0.3, 0.0]) == WinCounts(wins=1, ties=3, losses=1)


@settings(deadline=None)
@given(scores, st.data())
def test_win_counts_are_symmetric_and_add_up(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.floats(0, 1), min_size=len(a), max_size=len(a)))
    forward, back = count_wins(a, b), count_wins(b, a)
    assert (forward.wins, forward.ties, forward.losses) == (back.losses, back.ties, back.wins)
    assert sum(forward) == len(a)


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[1, 2\] queries"):
        compute_paired_p_value([0.1, 0.2], [0.1])
    with pytest.raises(DataError, match=r"\[0\] queries"):
        compute_bootstrap_interval([])
    with pytest.raises(DataError, match="cannot be paired"):
        rank_models({})
    with pytest.raises(DataError, match="broken has a score that is not a number"):
        rank_models({"sound": [0.1, 0.2], "broken": [0.1, math.nan]})


def _assign_letters(order: str, *different: str) -> dict[str, str]:
    """Models as letters of a string, best first, and pairs of them that differ."""
    found = significance._assign_letters(range(len(order)), [(order.index(x), order.index(y)) for x, y in different])
    return {order[model]: letters for model, letters in found.items()}


def test_letters_computed_by_hand() -> None:
    assert _assign_letters("XYZ") == {"X": "a", "Y": "a", "Z": "a"}
    assert _assign_letters("XYZ", "XY", "XZ", "YZ") == {"X": "a", "Y": "b", "Z": "c"}
    assert _assign_letters("XYZ", "XZ") == {"X": "a", "Y": "ab", "Z": "b"}
    assert _assign_letters("WXYZ", "WY", "WZ", "XZ") == {"W": "a", "X": "ab", "Y": "bc", "Z": "c"}


def test_letters_where_differing_is_not_transitive() -> None:
    # The best differs from the second (which varies little) but not from the third (which varies much).
    assert _assign_letters("XYZ", "XY") == {"X": "a", "Y": "b", "Z": "ab"}
    # Two pairs that differ among four: the groups are WY, WZ, XY, XZ.
    assert _assign_letters("WXYZ", "WX", "YZ") == {"W": "ab", "X": "cd", "Y": "ac", "Z": "bd"}


def test_letters_continue_after_the_alphabet() -> None:
    # Twelve models in six pairs that differ: 2 ** 6 groups, each choosing one of every pair.
    found = significance._assign_letters(range(12), [(model, model + 1) for model in range(0, 12, 2)])
    used = set("".join(found.values()))
    assert len(used) == 64
    assert all(len(letters) == 32 and letters.isalpha() for letters in found.values())


def test_groups_without_end_get_no_letters() -> None:
    """Sixty pairs that differ have 2 ** 60 groups: a crafted folder of results would fill the memory."""
    found = significance._assign_letters(range(120), [(model, model + 1) for model in range(0, 120, 2)])
    assert set(found.values()) == {""}


def _iterate_pairs(size: int) -> Iterator[tuple[int, int]]:
    return itertools.combinations(range(size), 2)


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.sampled_from([*_iterate_pairs(7)])))))
def test_models_share_a_letter_exactly_if_they_do_not_differ(case: tuple[int, set[tuple[int, int]]]) -> None:
    size, drawn = case
    different = {pair for pair in drawn if max(pair) < size}
    letters = significance._assign_letters(range(size), sorted(different))
    for first, second in _iterate_pairs(size):
        assert bool(set(letters[first]) & set(letters[second])) == ((first, second) not in different)
    holders = [{model for model in letters if letter in letters[model]} for letter in set("".join(letters.values()))]
    assert not any(one < other for one in holders for other in holders)
    assert all(letters.values())


def test_ranks_count_the_models_that_are_significantly_better() -> None:
    generator = np.random.default_rng(9)
    base = generator.random(200)
    noise = {name: 0.05 * generator.standard_normal(200) for name in ("poor", "good", "also-good", "middle")}
    level = {"poor": 0.0, "good": 0.4, "also-good": 0.4, "middle": 0.2}
    found = rank_models({name: base + level[name] + noise[name] for name in noise})
    assert list(found) == ["poor", "good", "also-good", "middle"]
    assert found == {
        "good": ModelRank(1, "a"),
        "also-good": ModelRank(1, "a"),
        "middle": ModelRank(3, "b"),
        "poor": ModelRank(4, "c"),
    }


def test_ranks_correct_for_the_family() -> None:
    a, b = _draw_paired_scores(200, gap=0.014, seed=12)
    alone = compute_paired_p_value(a, b)
    others = {f"copy-{number}": a for number in range(4)}
    assert 0.05 / 15 < alone < 0.05
    assert {standing.rank for standing in rank_models({"a": a, "b": b}).values()} == {1, 2}
    assert {standing.letters for standing in rank_models({"a": a, "b": b, **others}).values()} == {"a"}


def test_a_large_family_of_models_can_be_distinguished() -> None:
    # 1225 pairs: with 10,000 rounds the smallest corrected p-value would be 0.12.
    generator = np.random.default_rng(10)
    table = {f"m{number}": number + 0.01 * generator.random(40) for number in range(50)}
    assert [standing.rank for standing in rank_models(table).values()] == list(range(50, 0, -1))


def test_alpha_determines_which_models_differ() -> None:
    a, b = _draw_paired_scores(200, gap=0.018, seed=12)
    p_value = compute_paired_p_value(a, b)
    assert rank_models({"a": a, "b": b}, alpha=p_value)["a"].rank == 2
    assert rank_models({"a": a, "b": b}, alpha=p_value - 1e-6)["a"].rank == 1


def test_one_model_has_rank_1() -> None:
    assert rank_models({"only": [0.1, 0.2]}) == {"only": ModelRank(1, "a")}
