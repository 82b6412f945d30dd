"""The sentences of `make demo` about the differences between models."""

from typing import Any

import pytest

from benchmarks.demo import RECIPE, describe_difference
from retbench.cards import catalog


def row(model: str, score: float, letters: str) -> dict[str, Any]:
    return {"model": model, "main_score": score, "letters": letters, "queries": "sample of 40"}


@pytest.mark.parametrize("is_first", [True, False])
def test_a_significant_difference_names_the_better_model_first(is_first: bool) -> None:
    rows = [row("encoder", 0.5, "a"), row("bm25", 0.375, "bc")]
    sentence = describe_difference(*(rows if is_first else rows[::-1]))
    assert sentence == "- encoder is better than bm25, by 12.5 points of nDCG@10 on a sample of 40 queries."


def test_the_words_follow_the_letters_of_the_board() -> None:
    """Each pair was tested for itself, where the board corrects for all pairs: the words found more."""
    sentence = describe_difference(row("bm25", 0.4, "ab"), row("encoder", 0.5, "a"))
    assert sentence.startswith("- Whether encoder or bm25 is better is open: 10.0 points of nDCG@10")
    assert sentence.endswith("on a sample of 40 queries may be chance.")


def test_the_training_named_at_the_end_has_ten_steps_and_none_of_them_warms_up() -> None:
    recipe = catalog.find_recipe(RECIPE)
    assert (recipe.optimizer.max_steps, recipe.optimizer.warmup_ratio, recipe.max_minutes) == (10, 0.0, None)
