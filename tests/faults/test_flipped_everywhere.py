"""One random bit of every kind of file: what the benchmark counts, with few flips. No score changes unnoticed."""

import json
from pathlib import Path

import pytest

from benchmarks import flip_bits

pytestmark = pytest.mark.fault


def test_no_flip_changes_a_score_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: object
) -> None:
    monkeypatch.setenv("RETBENCH_CARDS", "")  # so that it is restored
    assert flip_bits.main(["--flips", "4", "--seed", "3"], tmp_path / "counts.json") == 0
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts.keys() == flip_bits.KINDS.keys()
    assert all(row["tried"] == 4 for row in counts.values())
    assert sum(row["seen"] for row in counts.values()) > 8
