"""Bugs and unusable paths: one cell fails with two lines, the others are run, and no key is printed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retbench.errors import ResourceError, build_write_error, convert_to_resource_error
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.reranking.chain import RerankingJob
from tests import small_collection
from tests.test_run import run_command

KEY = "sk-do-not-tell-this"


class StrangeError(Exception):
    """An exception that nothing expects."""


@pytest.fixture
def broken_task(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second task, on which every cell ends in a bug whose message holds a key."""
    other = small_collection.write_folder(tmp_path / "broken")
    monkeypatch.setenv("SOME_API_KEY", KEY)

    def break_one(job: Any) -> Any:
        if job.task.name == "broken":
            raise StrangeError(f"lost in {KEY}\nsecond line")
        return original(job)

    original = EvaluationJob.load_or_run
    monkeypatch.setattr(EvaluationJob, "load_or_run", break_one)
    return other


def test_a_bug_fails_its_cell_and_the_others_are_run(broken_task: Path, task: Path, out: Path, own_cache: Path) -> None:
    answer = run_command("run", "--model", "bm25", "--task", broken_task, "--task", task, "--out", out, "--json")
    assert answer.exit_code == 1
    failed, done = json.loads(answer.stdout)
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert failed["error"] == "unexpected StrangeError: lost in ***"
    (file,) = (own_cache / "tracebacks").iterdir()
    assert str(file) in failed["next_step"]
    text = file.read_text()
    assert "break_one" in text
    assert "second line" in text
    assert KEY not in text + answer.stdout + answer.stderr
    (note,) = out.rglob("*.failed.json")
    assert "$RETBENCH_CACHE/tracebacks" in json.loads(note.read_text())["next_step"]


def test_a_cell_that_failed_by_a_bug_alone_gives_the_exit_code_1(broken_task: Path, out: Path) -> None:
    assert run_command("run", "--model", "bm25", "--task", broken_task, "--out", out).exit_code == 1


def test_a_bug_in_a_reranker_fails_only_its_cell(
    task: Path, out: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    def fail(_: Any) -> Any:
        raise StrangeError

    monkeypatch.setattr(RerankingJob, "load_or_run", fail)
    answer = run_command("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", "ql", "--json")
    assert answer.exit_code == 1
    done, failed = json.loads(answer.stdout)
    assert (done["status"], failed["status"]) == ("done", "failed")
    assert failed["error"] == "unexpected StrangeError: "


def test_a_traceback_is_logged_if_the_cache_cannot_be_written(
    broken_task: Path, out: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_cache / "tracebacks").write_text("a file, not a folder")
    answer = run_command("run", "--model", "bm25", "--task", broken_task, "--out", out, "--json")
    assert "the traceback above" in json.loads(answer.stdout)[0]["next_step"]
    assert "break_one" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO]
)
def test_an_unusable_path_is_named(code: int) -> None:
    problem = OSError(code, os.strerror(code), "/some/file")
    error = convert_to_resource_error(problem)
    assert isinstance(error, ResourceError)
    assert error.cause == f"/some/file cannot be used: {os.strerror(code)}"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_no_bug(code: int) -> None:
    error = convert_to_resource_error(OSError(code, os.strerror(code), "/some/file"))
    assert isinstance(error, ResourceError)
    assert error.cause.startswith("too many files are open: ")
    assert "ulimit -n" in error.next_step
    written = build_write_error("/some/file", OSError(code, os.strerror(code)), "free disk space")
    assert written.cause == f"/some/file could not be written: {os.strerror(code)}"
    assert "ulimit -n" in written.next_step
    assert build_write_error("f", OSError(errno.ENOSPC, "full"), "free disk space").next_step == "free disk space"


def run_main(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


def test_the_traceback_of_a_bug_has_no_key() -> None:
    code = f"from retbench.cli import main\ndef fail(): raise KeyError('{KEY}')\nmain.app = fail\nmain.main()"
    done = run_main(code, SOME_API_KEY=KEY)
    assert done.returncode == 1
    assert b"KeyError: '***'" in done.stderr
    lines = [line for line in done.stderr.decode().splitlines() if "raise" not in line]  # a line of this program
    assert not [line for line in lines if KEY in line]


def test_json_is_json_at_any_terminal() -> None:
    facts = {"name": "é 茶 \U0001f600 \udc80"}
    code = f"from retbench.cli import command, main\nmain.app = lambda: command.print_json({facts!a})\nmain.main()"
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = run_main(code, PYTHONIOENCODING=encoding)
        assert json.loads(done.stdout.decode(encoding)) == facts, done


def test_any_text_is_printed_at_any_terminal() -> None:
    code = "from retbench.cli import main\nmain.app = lambda: print('nDCG \\u2191 \\U0001f600 \\udc80')\nmain.main()"
    done = run_main(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"nDCG \\u2191 \\U0001f600 \\udc80\n"
