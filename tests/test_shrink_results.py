"""Committed results are small, and reports and tests of them are the same."""

from pathlib import Path

import numpy as np

import retbench
from benchmarks.shrink_results import shrink_run
from retbench.pipelines.report import build_report
from tests.finished_runs import write_finished_run

SCORES = np.random.default_rng(0).uniform(0.2, 0.9, 30)


def test_reports_and_comparisons_of_shrunk_runs_are_the_same(tmp_path: Path) -> None:
    folders = [write_finished_run(tmp_path, name, "t", SCORES - n / 9) for n, name in enumerate(("first", "second"))]
    report, test = build_report(tmp_path).format("markdown"), retbench.compare(*folders).test
    sizes = [(folder / "per_query.parquet").stat().st_size for folder in folders]
    for folder, size in zip(folders, sizes, strict=True):
        shrink_run(folder)
        shrink_run(folder)  # a second time changes nothing
        assert sorted(file.name for file in folder.iterdir()) == ["per_query.parquet", "record.json"]
        assert (folder / "per_query.parquet").stat().st_size < size
    assert build_report(tmp_path).format("markdown") == report
    assert retbench.compare(*folders).test == test
