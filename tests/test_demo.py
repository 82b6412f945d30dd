"""The sentences of `make demo` about the differences between models."""

import pytest

from benchmarks.demo import describe_difference, format_share


@pytest.mark.parametrize(
    ("p_value", "expected"),
    [
        (0.0001, "less than 1 of 1,000 cases"),
        (0.004, "4 of 1,000 cases"),
        (0.03, "3 of 100 cases"),
        (1, "100 of 100 cases"),
    ],
)
def test_a_probability_is_written_as_cases(p_value: float, expected: str) -> None:
    assert format_share(p_value) == expected


def test_a_significant_difference_names_the_better_model_first() -> None:
    sentence = describe_difference("bm25", "encoder", {"difference": -0.125, "p_value": 0.02, "queries": 40})
    assert sentence.startswith("- encoder is better than bm25, by 12.5 points of nDCG@10 on 40 queries.")
    assert sentence.endswith("in 2 of 100 cases.")


def test_without_significance_nothing_is_claimed() -> None:
    sentence = describe_difference("bm25", "encoder", {"difference": 0.05, "p_value": 0.2, "queries": 40})
    assert sentence.startswith("- Whether bm25 or encoder is better is open: 5.0 points on 40 queries.")
    assert "20 of 100 cases" in sentence
