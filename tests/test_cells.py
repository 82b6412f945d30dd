"""The end of `retbench run`: exit codes, doubtful scores, where the runs are, and the next commands."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import retbench
from retbench.cli.cells import describe_extreme_score
from retbench.cli.main import app
from retbench.records.cell import Cell, Status, compute_exit_code
from retbench.records.extreme_score import MIN_QUERIES_TO_DOUBT
from tests import small_collection

CELL = Cell("m", "mean", "t", "custom", "test", "done", scores={"ndcg_at_10": 0.5}, main_score=0.5, queries=300)


def run_command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (("done",), 0),
        (("done", "skipped"), 0),
        (("done", "failed"), 1),
        (("skipped",), 2),
        (("skipped", "failed"), 4),
        (("failed", "skipped"), 4),
        ((), 0),
    ],
)
def test_the_exit_code_follows_what_was_done(statuses: tuple[Status, ...], code: int) -> None:
    exit_codes = {"done": 0, "skipped": 2, "failed": 4}
    assert compute_exit_code([replace(CELL, status=s, exit_code=exit_codes[s]) for s in statuses]) == code


def test_a_command_that_only_skips_is_an_error(model: Path, task: Path, out: Path) -> None:
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    line = ("run", "--model", model, "--task", task, "--method", "promptreps", "--out", out)
    answer = run_command(*line)
    assert answer.exit_code == 2
    assert "error: method promptreps needs a chat template" in answer.stderr
    answer = run_command(*line, "--method", "mean")
    assert answer.exit_code == 0
    assert "skipped: method promptreps needs a chat template" in answer.stderr
    assert "error:" not in answer.stderr


@pytest.mark.parametrize(
    ("score", "queries", "remark"),
    [
        (0.0, MIN_QUERIES_TO_DOUBT, "exactly 0 on all 10 queries"),
        (1.0, 300, "exactly 100 on all 300 queries"),
        (0.0, MIN_QUERIES_TO_DOUBT - 1, None),
        (0.00001, 300, None),
        (0.9999, 300, None),
    ],
)
def test_a_score_of_exactly_0_or_100_is_doubted(score: float, queries: int, remark: str | None) -> None:
    found = describe_extreme_score(replace(CELL, main_score=score, queries=queries))
    assert (found is None) if remark is None else (remark in str(found))


def test_a_score_of_0_is_pointed_out_beside_the_figure(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "mixed")
    rows = [{"_id": f"d{n}", "text": f"word{n}"} for n in range(10)]
    queries = [{"_id": f"q{n}", "text": f"other{n}"} for n in range(10)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for file in (folder / "qrels").iterdir():
        file.unlink()
    (folder / "qrels" / "test.tsv").write_text("\n".join(f"q{n}\td{n}\t1" for n in range(10)))
    answer = run_command("run", "--model", "bm25", "--task", folder, "--out", tmp_path / "runs")
    assert answer.exit_code == 0
    assert "0.00 !" in answer.stdout
    assert "note: bm25 · bm25 · mixed: exactly 0 on all 10 queries" in answer.stderr


def test_a_run_ends_with_the_next_commands_and_they_work(task: Path, out: Path) -> None:
    answer = run_command("run", "--model", "bm25", "--model", "bm25-lucene", "--task", task, "--out", out)
    ids = {file.parent.name for file in out.rglob("record.json")}
    assert len(ids) == 2
    assert all(settings_id in answer.stdout for settings_id in ids)
    assert f"saved: 2 runs in {out}" in answer.stderr
    report, compare = (line.removeprefix("next:").strip() for line in answer.stderr.splitlines()[-2:])
    for command in (report, compare):
        name, *words = shlex.split(command)
        assert name == "retbench"
        assert run_command(*words).exit_code == 0
    assert set(shlex.split(compare)[2:4]) == ids


def test_runs_go_to_the_users_folder_and_not_to_committed_results(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("run", "--model", "bm25", "--task", task)
    answer = run_command(*line)
    assert answer.stderr.splitlines()[-1] == "next:  retbench report"
    assert not (tmp_path / "results").exists()
    assert list((tmp_path / "retbench-results").rglob("record.json"))
    assert "pantry" in run_command("report").stdout
    (tmp_path / "retbench.toml").write_text('results = "mine"')
    run_command(*line)
    monkeypatch.setenv("RETBENCH_RESULTS", str(tmp_path / "theirs"))
    run_command(*line)
    assert len(retbench.evaluate("bm25", tasks=str(task))) == 1
    assert [len(list((tmp_path / name).rglob("record.json"))) for name in ("mine", "theirs")] == [1, 1]


def test_a_wrong_configuration_is_a_two_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retbench.toml").write_text('result = "mine"')
    answer = run_command("report")
    assert answer.exit_code == 4
    assert answer.stderr.startswith("error: retbench.toml:1: result: unknown field")
