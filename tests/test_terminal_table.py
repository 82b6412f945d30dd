"""Tables on a terminal: they fit 80 columns, names stay on one line, and what finds no room is named."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from retbench.cli import board_table, cells, terminal_table
from retbench.cli.terminal_table import Column, choose_columns, compute_widths, print_table
from retbench.pipelines.report import build_report
from retbench.records.cell import Cell
from tests.finished_runs import HOSTILE_NAME, METRIC, write_finished_run
from tests.test_cells import run_command

LONG = "smollm2-135m-instruct-q4-specialized-mini-fine-tuned-seed{}"


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of a terminal that stdout seems to be."""
    columns: int = request.param
    monkeypatch.setattr(terminal_table, "get_terminal_width", lambda: columns)
    monkeypatch.setattr(board_table, "get_terminal_width", lambda: columns)
    return columns


def test_columns_are_left_out_by_their_room_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("name", ["a" * 10]), Column("first", ["1" * 8], 2), Column("second", ["2" * 8], 1)]
    assert [column.head for column in choose_columns(columns, 20)] == ["name", "second"]
    assert print_table(columns, 20) == ["first"]
    assert capsys.readouterr().out.splitlines() == ["      name    second", "aaaaaaaaaa  22222222"]


def test_a_name_is_cut_in_the_middle_and_prose_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    names = [LONG.format(n) for n in (1, 2)]
    print_table([Column("model", names, kind="name"), Column("title", ["some words " * 9] * 2, kind="prose")], 60)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= 60 for line in lines)
    assert len(lines) == 3
    assert "…" in lines[1].split()[0]
    assert lines[1].split()[0] != lines[2].split()[0], "the ends of names tell them apart"
    assert lines[1].rstrip().endswith("…")


def test_widths_are_natural_where_there_is_room() -> None:
    assert compute_widths([Column("a", ["b" * 30], kind="name"), Column("n", ["1"])], 80) == [30, 1]


def test_a_pipe_gets_every_column_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table([Column("name", ["x" * 300], kind="name"), Column("n", ["1"], 9)]) == []
    assert "x" * 300 in capsys.readouterr().out


def test_a_hostile_name_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("name", [HOSTILE_NAME + "\x1b[2J[/b]"], kind="text"), Column("n", ["1"])], 80)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_the_cells_of_a_run_fit(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A model's name was folded letter by letter at 80 columns."""
    scores = {METRIC: 0.5, "mrr_at_10": 0.4, "recall_at_100": 0.9}
    done = [
        Cell(LONG.format(n), "mean", "stdlib-code", "stdlib", "test", "done", settings_id="6ad11ae19b05", scores=scores)
        for n in (1, 2)
    ]
    cells.print_cells(done, Path("r"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(len(line.rstrip()) <= width for line in lines)
    assert all("6ad11ae19b05" in line and "50.00" in line for line in lines[1:])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two models with long names on three tasks."""
    scores = np.random.default_rng(1).uniform(0.2, 0.9, 12)
    for n in (1, 2):
        for task in ("one", "two", "three"):
            write_finished_run(tmp_path, LONG.format(n), task, scores / n)
    return tmp_path


def test_a_leaderboard_fits_the_terminal(width: int, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board_table.print_boards(build_report(results).boards, with_ids=True)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    assert lines[1].split()[:4] == ["rank", "letters", "model", "method"]
    assert "average" in lines[1]
    assert "interval" in lines[1]
    assert any("settings-id" in line for line in lines)


def test_a_terminal_gets_a_table_and_a_pipe_markdown(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command("report", results).stdout.startswith("## mine")
    table = run_command("report", results, "--format", "terminal")
    assert "|" not in table.stdout
    assert "next:  retbench report" in table.stderr
    refused = run_command("report", results, "--format", "terminal", "--out", results / "x")
    assert refused.exit_code == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal_table.get_terminal_width() == shutil.get_terminal_size().columns


def test_settings_ids_are_shown_on_request_and_lead_on(results: Path) -> None:
    ids = {file.parent.name for file in results.rglob("record.json")}
    assert len(ids) == 6
    for name in ("markdown", "csv", "latex", "terminal"):
        with_ids = run_command("report", results, "--format", name, "--ids").stdout
        without = run_command("report", results, "--format", name).stdout
        assert all(settings_id in with_ids for settings_id in ids)
        assert not any(settings_id in without for settings_id in ids)
    command = run_command("report", results, "--format", "terminal").stderr.splitlines()[-1].split()
    assert command[:2] == ["retbench", "compare"]
    assert run_command(*command[1:]).exit_code == 0
    lines = run_command("report", results, "--format", "terminal", "--metric", "ndcg@10").stderr.splitlines()[-2:]
    assert all("--metric ndcg@10" in line for line in lines)
    assert run_command(*lines[1].split()[1:]).exit_code == 0


def test_a_score_of_exactly_0_is_doubted_on_the_leaderboard(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "m", "t", [0.0] * 12)
    write_finished_run(tmp_path, "n", "t", [0.5] * 12)
    text = build_report(tmp_path).format("markdown")
    assert "| 0.00! |" in text or "0.00?!" in text
    assert "- ! m bm25 on t: exactly 0 on all 12 queries" in text
    assert "! n" not in text
