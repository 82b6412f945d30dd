"""The second line of an error is a command or a name that works: each was wrong or led nowhere."""

from pathlib import Path

import pytest

from retbench.errors import suggest_names
from tests import small_collection
from tests.finished_runs import write_finished_run
from tests.test_cells import run_command


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("run --model bm25 --task stdlib", "stdlib is a suite: --suite stdlib; its tasks: stdlib-code, stdlib-doc"),
        ("plan --model bm25 --task beir", "beir is a suite: --suite beir; its tasks: trec-covid, nfcorpus"),
        ("run --model bm25 --suite scifact", "scifact is a task: --task scifact"),
        ("run --model bm25 --suite ./small", "a folder is a task: --task ./small"),
        ("run --model bm25 --suite small", "a folder is a task: --task ./small"),
        ("run --model bm25 --task small", "write ./small for the folder small"),
        ("run --model minilm-l6 --task ./small --method small", "nothing is named like it; `retbench list methods`"),
    ],
)
def test_a_name_of_another_kind_gets_its_own_option(
    command: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_collection.write_folder(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    answer = run_command(*command.split())
    assert answer.exit_code == 2
    assert f"next:  {step}" in answer.output


def test_a_command_that_lists_the_names_is_only_told_where_there_is_one() -> None:
    """Queries and published tables were said to be in `retbench list`, which has neither."""
    names = [f"q{number:02}" for number in range(15)]
    step = suggest_names("zzz", names)
    assert step == "known: q00, q01, q02, q03, q04, q05, q06, q07, q08, q09, q10, q11 and 3 more"
    assert "`retbench list tasks` shows the 15 known names" in suggest_names("zzz", names, "retbench list tasks")


@pytest.mark.parametrize("verb", ["inspect", "verify", "export", "rerank --with rocchio"])
def test_the_run_of_a_model_on_a_task_can_be_named(verb: str, tmp_path: Path) -> None:
    """The message said "or give --task" for commands that had no such option."""
    for task in ("t1", "t2"):
        write_finished_run(tmp_path, "bm25", task, [0.5, 0.4])
    folder = ["--out" if "rerank" in verb else "--results", str(tmp_path)]
    answer = run_command(*verb.split(), "bm25", *folder)
    assert "2 runs in" in answer.output
    assert "next:  name one settings-id, or give --task" in answer.output
    chosen = run_command(*verb.split(), "bm25", "--task", "t2", *folder)
    assert "No such option" not in chosen.output
    assert "2 runs in" not in chosen.output
    assert "t2" in chosen.output, "it is found, though its texts are not here"
