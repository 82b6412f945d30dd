"""Agreement of the ranking by a sample with the full one: Kendall's tau, compared with scipy's."""

from pathlib import Path

import numpy as np
import pytest

from retbench.pipelines.report import build_report
from retbench.reports.sample_agreement import compute_kendall_tau
from tests.finished_runs import write_finished_run
from tests.test_run import run_command

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("seed", range(5))
def test_kendalls_tau_is_that_of_scipy_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, size=(2, 12)).astype(float)
    assert compute_kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def write_runs(out: Path, models: dict[str, tuple[float, float]], queries: int = 40, sample: int = 10) -> None:
    """Runs over all queries and over the first of them; a model has one level for each."""
    rng = np.random.default_rng(7)
    difficulty = rng.random(queries)
    for model, (full, sampled) in models.items():
        for level, count, size in ((full, queries, None), (sampled, sample, sample)):
            scores = [float(np.clip(level + value / 10, 0, 1)) for value in difficulty[:count]]
            write_finished_run(out, model, "t", scores, settings={"sample": size}, fingerprint=f"{count:064}")


def test_the_board_of_a_sample_says_how_well_it_ranks(out: Path) -> None:
    levels = {"a": (0.8, 0.8), "b": (0.7, 0.5), "c": (0.6, 0.6), "d": (0.4, 0.4)}
    write_runs(out, levels)
    sampled, full = build_report(out).boards
    assert full.sample_agreement is None
    agreement = sampled.sample_agreement
    assert agreement
    expected = stats.kendalltau([0.8, 0.5, 0.6, 0.4], [0.8, 0.7, 0.6, 0.4]).statistic
    assert (agreement.rows, agreement.swapped_pairs, agreement.pairs) == (4, 1, 6)
    assert agreement.tau == pytest.approx(expected)
    assert agreement.interval == pytest.approx((expected, expected))  # equal differences on every query: no doubt
    assert "Kendall's tau 0.67" in run_command("report", out).output
    (facts,) = {str(c["sample_agreement"]) for c in build_report(out).list_cells() if "sample_agreement" in c}
    assert "'swapped_pairs': 1" in facts


def test_the_interval_covers_the_choice_of_queries(out: Path) -> None:
    """Two models that no query tells apart surely: their order differs from draw to draw."""
    rng = np.random.default_rng(1)
    for model in "abc":
        scores = [float(value) for value in rng.random(60)]
        write_finished_run(out, model, "t", scores, settings={"sample": None}, fingerprint="f" * 64)
        write_finished_run(out, model, "t", scores[:12], settings={"sample": 12}, fingerprint="e" * 64)
    agreement = build_report(out).boards[0].sample_agreement
    assert agreement
    assert agreement.interval.low < agreement.interval.high
    assert agreement.interval.low <= agreement.tau <= agreement.interval.high


def test_without_three_rows_or_with_other_rules_there_is_no_agreement(out: Path) -> None:
    write_runs(out, {"a": (0.8, 0.8), "b": (0.7, 0.5)})
    write_finished_run(out, "c", "t", [0.5] * 40, settings={"sample": None, "same_id": "drop"}, fingerprint="0" * 64)
    write_finished_run(out, "c", "t", [0.5] * 10, settings={"sample": 10}, fingerprint=f"{10:064}")
    assert [board.sample_agreement for board in build_report(out).boards] == [None] * 3
