"""Hints that name an extra give a command that works in this installation."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import retbench
from retbench.errors import MissingError
from retbench.system import installation

PACKAGE = Path(retbench.__file__).parent


class StandInDistribution:
    """An installed distribution with the note that pip left about its origin."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return json.dumps(self.origin) if self.origin else None


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": "file:///srv/retbench", "dir_info": {"editable": True}}, "-e '/srv/retbench[ann,st]'"),
        ({"url": "file:///srv/my%20copy", "dir_info": {}}, "'/srv/my copy[ann,st]'"),
        (
            {"url": "file:///srv/retbench-0.1.0-py3-none-any.whl", "archive_info": {}},
            "'retbench[ann,st] @ file:///srv/retbench-0.1.0-py3-none-any.whl'",
        ),
    ],
)
def test_the_hint_names_what_pip_installed_from(
    origin: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installation.metadata, "distribution", lambda _: StandInDistribution(origin))
    monkeypatch.chdir(tmp_path)
    assert installation.suggest_extra("ann", "st") == f"{sys.executable} -m pip install {expected}"


def test_paths_inside_the_working_folder_are_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    monkeypatch.setattr(installation.metadata, "distribution", lambda _: StandInDistribution(origin))
    monkeypatch.setattr(installation.sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert installation.suggest_extra("ann") == ".venv/bin/python -m pip install -e '.[ann]'"


def test_without_a_note_the_checkout_is_named_and_then_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installation.metadata, "distribution", lambda _: StandInDistribution(None))
    assert installation.suggest_extra("ann").endswith("[ann]'")
    assert " -e " in installation.suggest_extra("ann")
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path)
    assert installation.suggest_extra("ann").endswith("-m pip install 'retbench[ann]'")


def test_no_message_names_a_package_index_that_does_not_have_retbench() -> None:
    hint = re.compile(r"pip install ['\"]?retbench\[")
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "installation.py"]
    assert [str(file) for file in files if hint.search(file.read_text(encoding="utf-8"))] == []


def test_every_extra_in_a_hint_exists() -> None:
    extras = set(tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {
        extra
        for file in PACKAGE.rglob("*.py")
        for call in re.findall(r"suggest_extra\(([^)*]+)\)", file.read_text(encoding="utf-8"))
        for extra in re.findall(r"['\"](\w+)['\"]", call)
    }
    assert {"train", "st", "vllm", "ray", "ann", "verify", "hub", "plots", "pandas"} <= named <= extras


def test_the_table_needs_pandas_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingError, match="pandas") as caught:
        retbench.load_results(tmp_path)
    assert "[pandas]" in caught.value.next_step


@pytest.mark.parametrize("name", ["pandas", "peft", "datasets", "faiss", "gguf", "sentence_transformers"])
def test_the_command_line_starts_without(name: str) -> None:
    program = f"import sys; sys.modules[{name!r}] = None; from retbench.cli.main import app"
    subprocess.run([sys.executable, "-c", program], check=True)
