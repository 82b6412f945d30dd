"""compare with a TREC run of another system: on the queries of the run beside it, and without settings."""

import gzip
from pathlib import Path

import pytest

import retbench
from retbench.pipelines.runs.saved_run import import_trec_run
from retbench.reports.comparison_text import format_comparison
from tests import small_collection


def test_a_trec_run_is_scored_on_the_sample_of_the_run_beside_it(tmp_path: Path) -> None:
    """With --task it was scored over all queries of the task, and a run of the sample lost most of its score."""
    folder = small_collection.write_folder(tmp_path / "small")
    (cell,) = retbench.evaluate(["bm25"], tasks=[str(folder)], sample=2, out=tmp_path / "r")
    theirs = tmp_path / "theirs.trec"
    theirs.write_bytes(gzip.decompress((Path(cell.record or "") / "run.trec.gz").read_bytes()))
    for a, b in ((theirs, "bm25"), ("bm25", theirs)):
        found = retbench.compare(a, b, results=tmp_path / "r", task=str(folder))
        assert found.test is not None
        assert found.test.queries == found.test.wins.ties == 2
        assert found.remarks == []
        silent = "A" if a is theirs else "B"
        text = format_comparison(found)
        assert f"{silent} states no settings" in text
        assert "not stated" not in text, "one line in place of one for each setting"
        assert "every query has the same score in both" in text
        assert "80%" not in text, "no power can be computed without a difference"


def test_queries_without_a_ranking_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    (tmp_path / "theirs.trec").write_text("q1 Q0 tea 1 2.0 x\n")
    saved, _ = import_trec_run(tmp_path / "theirs.trec", str(folder), tmp_path / "r", "retbench rerank")
    assert "theirs.trec has no ranking for 2 of 3 queries; they score 0" in caplog.text
    assert saved.record.scores["recall_at_100"] > 0
