"""Names of others at a terminal and in a spreadsheet: never markup, escape sequences or formulas."""

import csv
import io
from pathlib import Path

import pytest

from retbench.cli import command
from retbench.cli.terminal_text import remove_control_characters
from retbench.errors import DataError
from retbench.pipelines.report import build_report
from tests import small_collection
from tests.finished_runs import write_finished_run
from tests.test_run import run_command

HOSTILE = "[/x][red]\x1b[2J\x07\x9b31m\u202e"


def test_control_characters_are_replaced() -> None:
    assert (
        remove_control_characters("a\x1b[31m\r\x00\x9b\u202eb\tc\nd ü 語 \xa0")
        == "a\ufffd[31m" + "\ufffd" * 4 + "b\tc\nd ü 語 \xa0"
    )


def test_a_task_with_a_hostile_name_is_run_and_listed(tmp_path: Path, out: Path) -> None:
    task = small_collection.write_folder(tmp_path / "[red]\x1b[2Jx")
    answer = run_command("run", "--model", "bm25", "--task", task, "--out", out)
    assert answer.exit_code == 0, answer.output
    listed = run_command("list", "results", "--results", out)
    for text in (answer.output, answer.stderr, listed.output):
        assert "\x1b" not in text
    assert "[red]" in answer.stdout
    assert "[red]" in listed.output


def test_markup_in_a_name_does_not_end_a_table(tmp_path: Path) -> None:
    write_finished_run(tmp_path, HOSTILE, HOSTILE, [0.5, 0.6], method=HOSTILE)
    for words in (("list", "results", "--results", tmp_path), ("report", tmp_path)):
        answer = run_command(*words)
        assert answer.exit_code == 0, answer.output
        assert "\x1b" not in answer.output + answer.stderr
        assert "\u202e" not in answer.output


def test_an_error_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    command.print_error(DataError(f"no {HOSTILE}", "next"), as_json=False)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert printed.startswith("error: no [/x][red]\ufffd[2J")


@pytest.mark.parametrize("name", ["=cmd", "+1", "-1+1", "@x", "\tx"])
def test_no_name_is_a_formula_in_csv(name: str, tmp_path: Path) -> None:
    write_finished_run(tmp_path, name, name, [0.5, 0.6], method=name, suite=name)
    rows = list(csv.reader(io.StringIO(build_report(tmp_path).format("csv"))))
    fields = [field for row in rows for field in row if name in field]
    assert len(fields) > 4
    assert not [field for field in fields if field.startswith(name)]
