"""Files and folders of another user: two lines and an exit code, never a traceback. Root may read everything, so these
tests run the command as the user nobody (if the tests themselves run as root), or as they are."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import small_collection, tiny_models

pytestmark = pytest.mark.fault

NOBODY = 65534
DROP_ROOT = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.geteuid() == 0 else ()
RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that nobody can reach: pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def require_other_user(place: Path) -> None:
    """Skip if another user cannot run Python here."""
    try:
        command = [*DROP_ROOT, sys.executable, "-c", "import retbench.cli.main"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    except OSError as problem:
        pytest.skip(f"another user cannot be taken: {problem}")
    if done.returncode:
        pytest.skip(f"another user cannot run this Python: {done.stderr.strip()[-200:]}")


@pytest.fixture
def folder(place: Path) -> Path:
    made = Path(tempfile.mkdtemp(dir=place))
    made.chmod(0o777)
    return made


@pytest.fixture
def task(folder: Path) -> Path:
    return small_collection.write_folder(folder / "pantry")


@pytest.fixture
def retbench(folder: Path) -> RunCommand:
    """Run a command as another user, with a cache and a home that this user can write."""

    def run(*words: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
        changes = {"RETBENCH_CACHE": str(folder / "cache"), "HOME": str(folder), **environment}
        merged = {key: value for key, value in {**os.environ, **changes}.items() if value is not None}
        command = [*DROP_ROOT, sys.executable, "-m", "retbench", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=merged, cwd=folder)

    return run


def assert_two_lines(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """Check the exit code and that an error and a next step are printed. Return both lines."""
    assert done.returncode in codes, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert "unexpected " not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "next:"))]
    assert len(lines) == 2, done.stderr
    return "\n".join(lines)


def read_cell(done: subprocess.CompletedProcess[str]) -> Any:
    """The only cell of a run with --json."""
    assert "Traceback" not in done.stderr + done.stdout
    (cell,) = json.loads(done.stdout)
    assert "unexpected " not in str(cell.get("error"))
    return cell


def build_model(folder: Path) -> Path:
    """Write a model that other users can read: safetensors files are only readable by their owner."""
    model = tiny_models.build_model(folder / "model")
    (model / "model.safetensors").chmod(0o644)
    return model


def close(path: Path) -> Path:
    """Take all rights of other users."""
    path.chmod(0)
    return path


@pytest.fixture(autouse=True)
def reopen(place: Path) -> Iterator[None]:
    yield
    for path in place.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IRWXU)


def test_a_cache_of_another_user_is_named(folder: Path, task: Path, retbench: RunCommand) -> None:
    (folder / "cache").mkdir(mode=0o700)
    close(folder / "cache")
    done = retbench("run", "--model", "bm25", "--task", task, "--out", folder / "out")
    assert "cache" in assert_two_lines(done, 5)


def test_results_of_another_user_are_refused(folder: Path, task: Path, retbench: RunCommand) -> None:
    (folder / "out").mkdir(mode=0o755)
    (folder / "out").chmod(0o555)
    cell = read_cell(retbench("run", "--model", "bm25", "--task", task, "--out", folder / "out", "--json"))
    assert "out cannot be written" in cell["error"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels", "."])
def test_an_unreadable_collection_is_named(name: str, folder: Path, task: Path, retbench: RunCommand) -> None:
    close(task / name)
    done = retbench("run", "--model", "bm25", "--task", task, "--out", folder / "out")
    assert done.returncode in (3, 4, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr + done.stdout
    assert "pantry" in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "."])
def test_unreadable_weights_are_named(name: str, folder: Path, task: Path, retbench: RunCommand) -> None:
    model = build_model(folder)
    close(model / name)
    done = retbench("run", "--model", model, "--task", task, "--method", "mean", "--out", folder / "out")
    assert done.returncode in (3, 4, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr + done.stdout
    assert "model" in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["record.json", "per_query.parquet", "run.trec.gz"])
def test_an_unreadable_record_is_left_out_and_run_again(
    name: str, folder: Path, task: Path, retbench: RunCommand
) -> None:
    words = ("run", "--model", "bm25", "--task", task, "--out", folder / "out", "--json")
    first = read_cell(retbench(*words))
    assert first["status"] == "done"
    close(Path(first["record"]) / name)
    reported = retbench("report", folder / "out")
    assert "Traceback" not in reported.stderr + reported.stdout
    again = read_cell(retbench(*words))
    assert (again["status"], again["scores"]) == ("done", first["scores"])


def test_an_unreadable_configuration_is_named(folder: Path, task: Path, retbench: RunCommand) -> None:
    (folder / "retbench.toml").write_text("")
    close(folder / "retbench.toml")
    assert "retbench.toml" in assert_two_lines(retbench("list", "models"), 3, 4, 5)


def test_an_unreadable_card_folder_is_named(folder: Path, retbench: RunCommand) -> None:
    (folder / "cards" / "model_cards").mkdir(parents=True)
    file = folder / "cards" / "model_cards" / "x.toml"
    file.write_text('name = "x"')
    close(file)
    assert "x.toml" in assert_two_lines(retbench("list", "models", RETBENCH_CARDS=str(folder / "cards")), 3, 4, 5)


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_without_a_home_the_cache_is_asked_for(
    home: str | None, folder: Path, task: Path, retbench: RunCommand
) -> None:
    words = ("run", "--model", "bm25", "--task", task, "--out", folder / "out")
    done = retbench(*words, HOME=home, RETBENCH_CACHE=None, XDG_CACHE_HOME=None)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr + done.stdout
    assert done.returncode in (0, 5), done.stderr
    assert done.returncode == 0 or "RETBENCH_CACHE" in done.stderr + done.stdout


def test_a_lock_of_another_user_is_named(folder: Path, task: Path, retbench: RunCommand) -> None:
    """A shared cache: another user's lock can be read, but not opened for writing."""
    model = build_model(folder)
    words = ("run", "--model", model, "--task", task, "--method", "mean", "--out", folder / "out", "--json")
    first = read_cell(retbench(*words))
    assert first["status"] == "done", first["error"]
    shutil.rmtree(folder / "out")
    for lock in (folder / "cache").rglob("*lock*"):
        lock.chmod(0o444)
        if DROP_ROOT:
            os.chown(lock, 0, 0)
    assert read_cell(retbench(*words))["status"] in ("done", "failed")
