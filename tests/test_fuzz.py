"""A few damaged inputs of every parser, the same in every run; `make fuzz` tries new ones."""

import pytest

from tests import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_damaged_input_gives_a_value_or_a_retbench_error(target: fuzz.Target) -> None:
    assert fuzz.fuzz_target(target, target.quick, seed=None) >= target.quick * 0.8


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_undamaged_samples_are_parsed(target: fuzz.Target, tmp_path: object) -> None:
    """If a sample were invalid, its damaged copies would test only the first check of the parser."""
    samples = target.samples()
    assert samples
    for sample in samples:
        fuzz.try_input(target, sample, strict=True)
