"""Mean ranks over tasks: against scipy and against a plain loop, and as a column of the leaderboard."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from retbench.pipelines.report import build_report
from retbench.reports.mean_ranks import ROUNDS, rank_columns
from retbench.reports.table_cells import MEAN_RANK_HEAD, build_table
from tests.finished_runs import write_failed_run, write_finished_run

GENERATOR = np.random.default_rng(5)
MODELS = ("a", "b", "c")
TASKS = ("one", "two", "three")
SCORES = {task: {model: GENERATOR.uniform(0, 1, 20 + 5 * n) for model in MODELS} for n, task in enumerate(TASKS)}


def test_ranks_are_those_of_scipy() -> None:
    scores = GENERATOR.integers(0, 4, (50, 6)).astype(float)  # with many ties
    assert rank_columns(scores) == pytest.approx(rankdata(-scores, axis=1))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for task, by_model in SCORES.items():
        for model, scores in by_model.items():
            write_finished_run(tmp_path, model, task, scores)
    write_finished_run(tmp_path, "incomplete", "one", SCORES["one"]["a"])
    write_failed_run(tmp_path, "incomplete", "two")
    return tmp_path


def test_the_mean_rank_and_its_interval_are_those_of_a_plain_loop(results: Path) -> None:
    (board,) = build_report(results).boards
    expected = np.mean([rankdata([-SCORES[task][model].mean() for model in MODELS]) for task in TASKS], axis=0)
    drawn = []
    generator = np.random.default_rng(77)
    for _ in range(ROUNDS):
        ranks = []
        for task in TASKS:
            rows = generator.integers(len(SCORES[task]["a"]), size=len(SCORES[task]["a"]))
            ranks.append(rankdata([-SCORES[task][model][rows].mean() for model in MODELS]))
        drawn.append(np.mean(ranks, axis=0))
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    for row in board.rows:
        found = board.get_mean_rank(row)
        if row.model == "incomplete":
            assert found is None, "a row with missing tasks is not ranked"
            continue
        at = MODELS.index(row.model)
        assert found is not None
        assert found.value == pytest.approx(expected[at])
        assert list(found.interval) == pytest.approx(ends[:, at], abs=0.34), "one step of a rank on one of three tasks"
        assert found.interval.low <= found.value <= found.interval.high


def test_a_task_with_large_differences_does_not_decide_alone(tmp_path: Path) -> None:
    for task, good in (("one", 0.9), ("two", 0.31), ("three", 0.31)):
        write_finished_run(tmp_path, "wins-one", task, [good if task == "one" else 0.3] * 12)
        write_finished_run(tmp_path, "wins-two", task, [0.1 if task == "one" else good] * 12)
    (board,) = build_report(tmp_path).boards
    assert [row.model for row in board.rows] == ["wins-one", "wins-two"], "by the average"
    ranks = [board.get_mean_rank(row) for row in board.rows]
    assert [rank.value for rank in ranks if rank] == pytest.approx([5 / 3, 4 / 3])


def test_every_format_has_the_column(results: Path, tmp_path: Path) -> None:
    report = build_report(results)
    (board,) = report.boards
    table = build_table(board)
    assert all(len(line.cells) == len(table.heads) for line in table.lines)
    assert any(note.startswith("mean rank = ") for note in table.notes)
    assert MEAN_RANK_HEAD in report.format("markdown")
    assert MEAN_RANK_HEAD in report.format("html")
    rows = list(csv.DictReader(io.StringIO(report.format("csv"))))
    by_model = {cell["model"]: cell for cell in json.loads(json.dumps(report.list_cells())) if cell["task"] is None}
    assert {row["model"]: float(row[MEAN_RANK_HEAD]) for row in rows if row[MEAN_RANK_HEAD]} == pytest.approx(
        {model: by_model[model]["mean_rank"] for model in MODELS}, abs=1e-4
    )


def test_one_task_has_no_mean_rank(tmp_path: Path) -> None:
    for model in MODELS:
        write_finished_run(tmp_path, model, "one", SCORES["one"][model])
    (board,) = build_report(tmp_path).boards
    assert board.mean_ranks == {}
    assert MEAN_RANK_HEAD not in build_table(board).heads
