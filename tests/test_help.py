"""Help, environment variables and shell completion of the command line."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from retbench.cli import complete_names
from retbench.cli.examples import EXAMPLES
from retbench.cli.main import app
from tests.test_cells import run_command
from tests.test_docs import parse_command

COMMAND: Any = typer.main.get_command(app)


def _list_commands(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        found += _list_commands(command, f"{name} ") if hasattr(command, "commands") else [(prefix + name, command)]
    return found


COMMANDS = _list_commands(COMMAND)


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_each_command_has_an_example_that_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mteb-results").mkdir()  # `import` looks for its folder as it parses
    monkeypatch.chdir(tmp_path)
    help_text = " ".join(run_command(*name.split(), "--help").stdout.split())
    assert "env var" not in help_text, "docs/configuration.md explains the variables once"
    for example in EXAMPLES[name]:
        assert len(example) < 79, "an example is one line of a terminal"
        assert example in help_text
        words = shlex.split(example)
        assert words[0] == "retbench"
        assert words[1 : 1 + len(name.split())] == name.split()
        parse_command(words[1:])


def test_there_is_no_example_of_a_command_that_does_not_exist() -> None:
    assert EXAMPLES.keys() == {name for name, _ in COMMANDS}


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "message"),
    [
        ("RETBENCH_LIST_JSON", "1", ("list", "methods"), '"pooling"'),
        ("RETBENCH_RUN_SET", "nonsense", ("run", "--model", "bm25", "--task", "stdlib-code"), "--set nonsense"),
        ("RETBENCH_CACHE_PRUNE_DRY_RUN", "1", ("cache", "prune", "--unfinished"), "would be removed"),
    ],
)
def test_a_variable_is_named_after_its_option(
    variable: str, value: str, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was RETBENCH_RUN_SET_ and RETBENCH_LIST_AS_JSON, after names inside the code."""
    assert message not in run_command(*arguments).output
    monkeypatch.setenv(variable, value)
    assert message in run_command(*arguments).output


def _complete(line: str) -> list[str]:
    variables = {"_RETBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    code = (
        "import sys; sys.argv[0] = 'retbench'; from retbench.cli.main import app; import atexit; "
        "atexit.register(lambda: print('torch' in sys.modules)); app(prog_name='retbench')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, text=True, capture_output=True, check=False
    )
    *names, has_torch = answer.stdout.split()
    assert has_torch == "False", answer.stderr
    return names


def test_the_shell_completes_names_without_torch() -> None:
    assert "minilm-l6" in _complete("retbench run --model mini")


@pytest.mark.parametrize(
    ("complete", "begin", "name"),
    [
        (complete_names.complete_models, "bm", "bm25"),
        (complete_names.complete_tasks, "stdlib-c", "stdlib-code"),
        (complete_names.complete_suites, "be", "beir"),
        (complete_names.complete_methods, "prompt", "promptreps"),
        (complete_names.complete_recipes, "qu", "quick"),
        (complete_names.complete_studies, "special", "specialized-mini"),
    ],
)
def test_names_of_cards_are_completed(complete: complete_names.Complete, begin: str, name: str) -> None:
    assert name in complete(begin)
    assert all(found.startswith(begin) for found in complete(begin))
    assert complete("./") == []


def test_the_name_to_show_depends_on_the_kind() -> None:
    assert complete_names.complete_cards("suite", "b") == complete_names.complete_suites("b")
    assert complete_names.complete_cards("nonsense", "b") == []


def test_show_names_unknown_fields_in_one_line() -> None:
    """It printed a line `not known` for every second field."""
    lines = run_command("show", "model", "smollm2-135m-instruct-q4").stdout.splitlines()
    assert sum("not known" in line for line in lines) == 1
    assert any(line.split() == ["shape.layers", "30"] for line in lines)


def test_recipes_and_studies_are_listed() -> None:
    assert "quick" in run_command("list", "recipes").stdout
    assert "specialized-mini" in run_command("list", "studies").stdout
