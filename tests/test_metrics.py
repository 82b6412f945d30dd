"""Metrics: small cases by hand, trec_eval as the reference, and properties that hold for every ranking."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.errors import DataError
from retbench.scoring.metrics import Scores, compute_mean_scores, score_query, score_run

Judgments = dict[str, dict[str, int]]
Rankings = dict[str, list[str]]

DOCUMENTS = [f"d{number}" for number in range(30)]
rankings = st.permutations(DOCUMENTS).flatmap(lambda order: st.integers(0, 30).map(lambda size: list(order[:size])))
judged = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-2, 4), max_size=12)


def test_metrics_computed_by_hand() -> None:
    # Relevant at ranks 2 (grade 2) and 4 (grade 1); a third relevant document (grade 3) is not found.
    scores = score_query(["x", "a", "y", "b"], {"a": 2, "b": 1, "c": 3, "x": 0, "y": -1}, depth=10)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert scores["ndcg_at_1"] == 0.0
    assert scores["ndcg_at_3"] == pytest.approx(2 / math.log2(3) / ideal)
    assert scores["ndcg_at_10"] == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert scores["map_at_3"] == pytest.approx((1 / 2) / 3)
    assert scores["map_at_10"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert scores["recall_at_1"] == 0.0
    assert scores["recall_at_5"] == pytest.approx(2 / 3)
    assert scores["mrr_at_10"] == pytest.approx(1 / 2)


def test_the_ideal_ranking_is_cut_like_the_ranking() -> None:
    # The ideal ranking at cutoff 1 has only the document of grade 2.
    scores = score_query(["low", "high"], {"low": 1, "high": 2}, depth=3)
    assert scores["ndcg_at_1"] == pytest.approx(1 / 2)
    assert scores["ndcg_at_3"] == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_a_cutoff_includes_its_own_rank() -> None:
    ranking = [f"x{number}" for number in range(200)]
    at_ten, at_eleven = (score_query(ranking, {f"x{position}": 1}, depth=100) for position in (9, 10))
    assert (at_ten["mrr_at_10"], at_ten["recall_at_10"]) == (pytest.approx(1 / 10), 1.0)
    assert (at_eleven["mrr_at_10"], at_eleven["recall_at_10"], at_eleven["ndcg_at_10"]) == (0.0, 0.0, 0.0)
    assert at_eleven["mrr_at_100"] == pytest.approx(1 / 11)


def test_metric_names_are_those_of_mteb_and_end_at_the_depth() -> None:
    ndcg_and_map = {f"{metric}_at_{cut}" for metric in ("ndcg", "map") for cut in (1, 3, 5, 10, 20, 100)}
    others = {f"recall_at_{cut}" for cut in (1, 5, 10, 20, 50, 100)} | {"mrr_at_10", "mrr_at_100"}
    assert set(score_query(["a"], {"a": 1}, depth=100)) == ndcg_and_map | others
    assert set(score_query(["a"], {"a": 1}, depth=999)) == ndcg_and_map | others
    deep = {"ndcg_at_1000", "map_at_1000", "recall_at_1000"}
    assert set(score_query(["a"], {"a": 1}, depth=1000)) == ndcg_and_map | others | deep
    assert list(score_query([], {}, depth=1000)) == list(score_query(["a"], {"a": 1}, depth=1000))


@pytest.mark.parametrize(
    ("ranking", "judged"),
    [([], {"a": 1}), (["a"], {}), (["a"], {"a": 0, "b": -1}), (["x"], {"a": 1})],
    ids=["nothing ranked", "nothing judged", "nothing relevant", "nothing found"],
)
def test_no_relevant_document_scores_zero(ranking: list[str], judged: dict[str, int]) -> None:
    assert set(score_query(ranking, judged, depth=10).values()) == {0.0}


def test_a_duplicate_is_refused_and_named() -> None:
    with pytest.raises(DataError, match="'b' is ranked more than once"):
        score_query(["a", "b", "c", "b"], {"a": 1}, depth=10)
    with pytest.raises(DataError, match="query 'q2': document 'a'"):
        score_run({"q1": ["a"], "q2": ["a", "a"]}, {"q1": {"a": 1}, "q2": {"a": 1}}, depth=10)


def test_a_run_has_one_entry_per_judged_query_in_their_order() -> None:
    judgments: Judgments = {"q3": {"a": 1}, "q1": {"a": 1}, "q2": {"a": 0}}
    scores = score_run({"q1": ["a"], "unjudged": ["a"], "q2": ["a"]}, judgments, depth=10)
    assert list(scores) == ["q3", "q1", "q2"]
    assert [row["ndcg_at_10"] for row in scores.values()] == [0.0, 1.0, 0.0]
    assert compute_mean_scores(scores)["ndcg_at_10"] == pytest.approx(1 / 3)


def test_the_mean_needs_queries_and_one_set_of_metrics() -> None:
    with pytest.raises(DataError, match="no judged query"):
        compute_mean_scores({})
    with pytest.raises(DataError, match="'q2' has other metrics"):
        compute_mean_scores({"q1": {"ndcg_at_10": 1.0}, "q2": {"ndcg_at_5": 1.0}})


def test_the_mean_does_not_depend_on_the_order_of_queries() -> None:
    values = np.random.default_rng(5).random(1000) * 10.0 ** np.random.default_rng(6).integers(-9, 1, 1000)
    forward = {f"q{position}": {"m": float(value)} for position, value in enumerate(values)}
    assert compute_mean_scores(forward) == compute_mean_scores(dict(reversed(forward.items())))


def _random_case(queries: int, corpus: int, depth: int) -> tuple[Rankings, Judgments]:
    """Draw rankings and judgments: grades of 0 and below, repeated grades, judged documents that are not ranked."""
    generator = np.random.default_rng(7)
    rankings, judgments = {}, {}
    for number in range(queries):
        size = depth if number % 3 else int(generator.integers(1, depth))
        rankings[f"q{number}"] = [f"d{position}" for position in generator.permutation(corpus)[:size]]
        chosen = generator.choice(corpus, size=int(generator.integers(1, 60)), replace=False)
        judgments[f"q{number}"] = {f"d{position}": int(generator.integers(-2, 4)) for position in chosen}
    return rankings, judgments


def _trec_eval(rankings: Mapping[str, Sequence[str]], judgments: Judgments, measures: set[str]) -> dict[str, Scores]:
    """Run trec_eval with minus the rank as score: it would round real scores to float32 and reorder ties."""
    run = {query: {d: -float(position) for position, d in enumerate(ranking)} for query, ranking in rankings.items()}
    scores: dict[str, Scores] = pytrec_eval.RelevanceEvaluator(judgments, measures).evaluate(run)
    return scores


def test_equal_to_trec_eval() -> None:
    rankings, judgments = _random_case(queries=150, corpus=1500, depth=1000)
    ours = score_run(rankings, judgments, depth=1000)
    cuts = "1,3,5,10,20,50,100,1000"
    theirs = _trec_eval(rankings, judgments, {f"ndcg_cut.{cuts}", f"map_cut.{cuts}", f"recall.{cuts}"})
    trec_names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall"}
    compared = 0
    for query, row in ours.items():
        for name, score in row.items():
            metric, cut = name.split("_at_")
            if metric in trec_names:
                assert score == pytest.approx(theirs[query][f"{trec_names[metric]}_{cut}"], abs=1e-12), (query, name)
                compared += 1
    assert compared == 150 * 21
    assert 0.01 < compute_mean_scores(ours)["ndcg_at_1000"] < 0.99


@pytest.mark.parametrize("cut", [10, 100])
def test_mrr_equals_trec_eval_on_the_cut_run(cut: int) -> None:
    """trec_eval has no cutoff for the reciprocal rank, so the run is cut first."""
    rankings, judgments = _random_case(queries=150, corpus=300, depth=200)
    ours = score_run(rankings, judgments, depth=200)
    theirs = _trec_eval({query: ranking[:cut] for query, ranking in rankings.items()}, judgments, {"recip_rank"})
    values = {query: row[f"mrr_at_{cut}"] for query, row in ours.items()}
    assert values == pytest.approx({query: row["recip_rank"] for query, row in theirs.items()}, abs=1e-12)
    assert len(set(values.values())) > 5


def test_a_query_that_returned_nothing_counts_where_trec_eval_skips_it() -> None:
    """A query without results has no line in a TREC run; skipping it would raise the mean."""
    rankings: Rankings = {"answered": ["a"], "empty": []}
    judgments: Judgments = {"answered": {"a": 1}, "empty": {"a": 1}, "missing": {"a": 1}}
    written = {query: ranking for query, ranking in rankings.items() if ranking}
    assert _trec_eval(written, judgments, {"ndcg_cut.10"}) == {"answered": {"ndcg_cut_10": 1.0}}
    assert compute_mean_scores(score_run(rankings, judgments, depth=10))["ndcg_at_10"] == pytest.approx(1 / 3)


@settings(deadline=None)
@given(rankings, judged)
def test_every_score_is_between_0_and_1(ranking: list[str], judged: dict[str, int]) -> None:
    assert all(0.0 <= score <= 1.0 for score in score_query(ranking, judged, depth=1000).values())


@settings(deadline=None)
@given(judged, st.sampled_from(DOCUMENTS), st.integers(1, 4))
def test_the_ideal_ranking_is_perfect(judged: dict[str, int], relevant: str, grade: int) -> None:
    judged[relevant] = grade
    ideal = sorted(judged, key=judged.__getitem__, reverse=True)
    scores = score_query(ideal, judged, depth=100)
    assert {score for name, score in scores.items() if name.startswith(("ndcg", "mrr"))} == {1.0}
    assert (scores["map_at_100"], scores["recall_at_100"]) == (1.0, 1.0)


@settings(deadline=None)
@given(rankings.filter(lambda ranking: len(ranking) > 1), judged, st.data())
def test_moving_the_better_document_up_never_lowers_a_score(
    ranking: list[str], judged: dict[str, int], data: st.DataObject
) -> None:
    upper = data.draw(st.integers(0, len(ranking) - 2))
    lower = data.draw(st.integers(upper + 1, len(ranking) - 1))
    first, second = sorted((ranking[upper], ranking[lower]), key=lambda document: judged.get(document, 0))
    worse, better = ranking.copy(), ranking.copy()
    worse[upper], worse[lower] = first, second
    better[upper], better[lower] = second, first
    before, after = score_query(worse, judged, depth=1000), score_query(better, judged, depth=1000)
    assert all(after[name] >= score - 1e-12 for name, score in before.items())


@settings(deadline=None)
@given(rankings, judged)
def test_unjudged_zero_and_negative_grades_are_the_same(ranking: list[str], judged: dict[str, int]) -> None:
    relevant = {document: grade for document, grade in judged.items() if grade > 0}
    assert score_query(ranking, judged, depth=1000) == score_query(ranking, relevant, depth=1000)
