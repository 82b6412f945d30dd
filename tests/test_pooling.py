"""Sums over token states: the GPU sum equals float64 and is deterministic; the CPU sum is unchanged."""

import pytest
import torch

from retbench.encoders import pooling

OFFSETS = torch.tensor([0, 1, 700, 703, 1500])


def draw_states() -> torch.Tensor:
    return torch.randn(1500, 48, generator=torch.Generator().manual_seed(4)).bfloat16()


def test_gpu_sums_equal_those_of_float64() -> None:
    sums = pooling._sum_in_fixed_order(draw_states(), OFFSETS)
    exact = torch.stack([part.double().sum(dim=0) for part in draw_states().split(OFFSETS.diff().tolist())])
    assert sums.dtype == torch.float32
    assert float((sums - exact).abs().max()) < 1e-4
    assert torch.equal(sums, pooling._sum_in_fixed_order(draw_states(), OFFSETS))


@pytest.mark.parametrize("name", ["mean", "weighted"])
def test_cpu_and_gpu_sums_give_the_same_mean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pooling.POOLINGS[name]  # type: ignore[index]
    usual = pool(draw_states(), OFFSETS)
    monkeypatch.setattr(pooling, "_sum_per_text", pooling._sum_in_fixed_order)
    torch.testing.assert_close(pool(draw_states(), OFFSETS), usual, rtol=0, atol=1e-6)


def test_the_cpu_sum_is_unchanged() -> None:
    owners = torch.repeat_interleave(torch.arange(4), OFFSETS.diff())
    sums = torch.zeros(4, 48).index_add_(0, owners, draw_states().float())
    assert torch.equal(pooling.pool_mean(draw_states(), OFFSETS), sums / OFFSETS.diff()[:, None])
