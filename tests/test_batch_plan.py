"""The batch plan: every text once, no batch above the token budget, shards of equal length."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.encoders.batch_plan import SHARD_SECONDS, BatchPlan, estimate_shard_tokens

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=120).map(lambda items: np.array(items, dtype=np.int64))
budgets = st.integers(1, 300)
shard_rows = st.integers(1, 40)


@given(lengths, budgets, shard_rows)
def test_every_row_is_run_exactly_once(lengths: np.ndarray, budget: int, shard_rows: int) -> None:
    plan = BatchPlan.build(lengths, budget, shard_rows)
    batched = [list(np.concatenate(list(plan.iterate_batches(shard)))) for shard in range(plan.shards)]
    assert sorted(row for shard in batched for row in shard) == list(range(len(lengths)))
    assert batched == [
        list(plan.get_shard_rows(shard)) for shard in range(plan.shards)
    ]  # the order in which vectors are stored


@given(lengths, budgets, shard_rows)
def test_a_padded_batch_is_within_the_token_budget_or_has_one_text(
    lengths: np.ndarray, budget: int, shard_rows: int
) -> None:
    plan = BatchPlan.build(lengths, budget, shard_rows)
    for shard in range(plan.shards):
        batches = list(plan.iterate_batches(shard))
        assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)
        for batch, next_batch in pairwise(batches):  # a batch is not smaller than necessary
            assert (len(batch) + 1) * max(1, lengths[batch].max()) > budget
            assert lengths[batch].min() >= lengths[next_batch].max()


@given(lengths, budgets, shard_rows)
def test_shards_are_equally_long_in_rows_and_in_tokens(lengths: np.ndarray, budget: int, shard_rows: int) -> None:
    plan = BatchPlan.build(lengths, budget, shard_rows)
    rows = [len(plan.get_shard_rows(shard)) for shard in range(plan.shards)]
    tokens = [int(lengths[plan.get_shard_rows(shard)].sum()) for shard in range(plan.shards)]
    assert max(rows) <= shard_rows
    assert max(rows) - min(rows) <= 1
    assert max(tokens) - min(tokens) <= lengths.max()


@given(lengths, budgets, shard_rows)
def test_the_same_lengths_give_the_same_plan(lengths: np.ndarray, budget: int, shard_rows: int) -> None:
    first, second = BatchPlan.build(lengths, budget, shard_rows), BatchPlan.build(lengths.copy(), budget, shard_rows)
    assert first.fingerprint == second.fingerprint
    for shard in range(first.shards):
        assert [list(batch) for batch in first.iterate_batches(shard)] == [
            list(batch) for batch in second.iterate_batches(shard)
        ]


@given(lengths)
def test_texts_of_equal_length_stay_in_row_order(lengths: np.ndarray) -> None:
    assert list(BatchPlan.build(lengths, 10, 5).order) == sorted(range(len(lengths)), key=lambda row: -lengths[row])


# (lengths, budget, rows per shard): each differs from ([4, 3, 2, 1], 8, 2) in one value
OTHERS = {
    "a length": ([4, 3, 2, 2], 8, 2),
    "the order": ([3, 4, 2, 1], 8, 2),
    "the budget": ([4, 3, 2, 1], 9, 2),
    "the shards": ([4, 3, 2, 1], 8, 4),
    "a text more": ([4, 3, 2, 1, 1], 8, 2),
}


@pytest.mark.parametrize(("lengths", "budget", "rows"), OTHERS.values(), ids=OTHERS)
def test_the_fingerprint_follows_the_plan(lengths: list[int], budget: int, rows: int) -> None:
    assert (
        BatchPlan.build(np.array([4, 3, 2, 1]), 8, 2).fingerprint
        != BatchPlan.build(np.array(lengths), budget, rows).fingerprint
    )


def test_a_plan_computed_by_hand() -> None:
    plan = BatchPlan.build(np.array([1, 9, 2, 4, 3, 2]), budget=8, shard_rows=3)
    assert [list(batch) for batch in plan.iterate_batches(0)] == [
        [1],
        [4, 5],
    ]  # 9 tokens alone; then 2 texts x 3 tokens
    assert [list(batch) for batch in plan.iterate_batches(1)] == [[3, 2], [0]]  # 2 texts x 4 tokens


@given(lengths, budgets, shard_rows, st.integers(1, 200))
def test_smaller_shards_have_the_same_batches(
    lengths: np.ndarray, budget: int, shard_rows: int, shard_tokens: int
) -> None:
    whole = BatchPlan.build(lengths, budget, shard_rows)
    cut = BatchPlan.build(lengths, budget, shard_rows, shard_tokens)
    assert [list(batch) for shard in range(cut.shards) for batch in cut.iterate_batches(shard)] == [
        list(batch) for shard in range(whole.shards) for batch in whole.iterate_batches(shard)
    ]
    for shard in range(cut.shards):
        batches = list(cut.iterate_batches(shard))
        assert np.array_equal(np.concatenate(batches), cut.get_shard_rows(shard))
        assert len(batches) == 1 or lengths[cut.get_shard_rows(shard)].sum() <= shard_tokens
    assert cut.fingerprint != whole.fingerprint


def test_a_thousand_texts_of_a_slow_model_are_many_shards() -> None:
    texts = np.full(1000, 200)
    smollm_flops = 2 * 106e6
    tokens = estimate_shard_tokens(smollm_flops, "cpu", "float32", threads=2)
    assert tokens is not None
    assert 2 * tokens * smollm_flops / 4e10 == pytest.approx(2 * SHARD_SECONDS, rel=0.01)
    assert BatchPlan.build(texts, 4096, 2048, tokens).shards == 50  # of one batch each
    assert estimate_shard_tokens(smollm_flops, "cuda", "bfloat16", threads=2) > 1e7  # type: ignore[operator]
    assert estimate_shard_tokens(None, "cpu", "float32", threads=2) is None
