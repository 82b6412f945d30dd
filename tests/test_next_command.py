"""The command printed after a training evaluates the new model: on its task, or on the offline suite."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cli.main import app
from retbench.pipelines.finetuning.next_command import format_evaluation_command
from tests import small_collection


def list_evaluated_tasks(command: str) -> list[str]:
    """Return the tasks that a printed command evaluates, by its dry run with bm25."""
    name, verb, *words = shlex.split(command)
    assert (name, verb, words[:2]) == ("retbench", "run", ["--model", "bm25"])
    answer: Any = CliRunner().invoke(app, ["run", *words, "--dry-run", "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return [cell["task"] for cell in json.loads(answer.stdout)]


@pytest.mark.parametrize("form", ["absolute", "relative", "spaces"])
def test_a_folder_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    name = "my pantry" if form == "spaces" else "pantry"
    folder = small_collection.write_folder(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    command = format_evaluation_command("bm25", f"./{name}" if form == "relative" else str(folder))
    assert list_evaluated_tasks(command) == [name]


def test_a_task_is_named_as_it_is() -> None:
    assert format_evaluation_command("m", "stdlib-code") == "retbench run --model m --task stdlib-code"


def test_msmarco_is_evaluated_on_its_suite() -> None:
    assert format_evaluation_command("m", "msmarco") == "retbench run --model m --suite msmarco-titled"


def test_data_without_an_evaluation_leads_to_the_offline_suite(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "positives": ["b"]}\n')
    folder = small_collection.write_folder(tmp_path / "pantry")
    (folder / "qrels" / "test.tsv").unlink()
    for dataset in (pairs, folder):
        assert format_evaluation_command("m", str(dataset)) == "retbench run --model m --suite stdlib"
