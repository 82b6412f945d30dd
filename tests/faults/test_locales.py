"""The locales C and POSIX, with an ASCII terminal: every command that prints gives the same answer, or two lines.

A process with such an environment imports retbench once and forks for each command. Words of a command arrive as bytes,
as from a shell. Texts, names of models and tasks, and the names of folders are not ASCII.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retbench.pipelines.report import build_report
from tests import small_collection
from tests.finished_runs import write_finished_run

pytestmark = pytest.mark.fault

FORKING = """
import json, os, sys
import retbench.pipelines.evaluation.evaluate, retbench.pipelines.report, retbench.pipelines.runs.compare
import retbench.pipelines.studies.status, retbench.reports.html_page
from retbench.cli.main import main
for number, words in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
    if not (process := os.fork()):
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}.{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["retbench", *(os.fsdecode(word.encode()) for word in words)]
        code = 99
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""
NO_UNICODE: dict[str, str] = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES: dict[str, dict[str, str]] = {
    "C": {**NO_UNICODE, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "POSIX": {**NO_UNICODE, "LC_ALL": "POSIX"},
    "Latin-1": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
}
FILE_FORMATS = ("html", "csv", "latex")
MODELS = ("modèle", "模型", "модель", "\N{TEAPOT}\N{GRINNING FACE}")
STUDY = 'name = "étude"\ntitle = "Études"\n[[stages]]\nname = "words"\nmodels = ["bm25"]\ntasks = ["{task}"]\n'


class Commands:
    """Runs commands in one environment, and reads what they printed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.codes: list[int] = []

    def run(self, commands: list[list[str]]) -> None:
        (self.folder / "commands").write_text(json.dumps(commands), encoding="utf-8")
        words = [sys.executable, "-c", FORKING, str(self.folder / "commands")]
        names = ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE")
        inherited = {name: value for name, value in os.environ.items() if name not in names}
        done = subprocess.run(words, env={**inherited, **self.environment}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.codes = [int(line) for line in done.stdout.split()]

    def read(self, number: int, stream: str = "out") -> bytes:
        return (self.folder / f"commands.{number}.{stream}").read_bytes()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for number, name in enumerate(MODELS):
        write_finished_run(tmp_path / "results", name, "tâche", [0.1 * number, 0.5, 0.9])
    return tmp_path / "results"


@pytest.fixture
def commands(tmp_path: Path, results: Path) -> dict[str, tuple[list[str], int]]:
    """Every command that prints, and its exit code: texts and names are not ASCII, paths are, but for the last."""
    task, odd = small_collection.write_folder(tmp_path / "tea"), tmp_path / "thé"
    for file in ("corpus.jsonl", "queries.jsonl"):
        texts = (task / file).read_text(encoding="utf-8")
        (task / file).write_text(texts.replace('"text": "', '"text": "thé 茶 '), encoding="utf-8")
    odd.symlink_to(task)
    study, folders = tmp_path / "study.toml", {name: str(tmp_path / name) for name in ("out", "study", "odd")}
    study.write_text(STUDY.format(task=task), encoding="utf-8")
    one, other = sorted(path.parent.name for path in results.rglob("record.json"))[:2]
    report, listed, compared = ["report", str(results)], ["list", "results"], ["compare", one, other]
    read = ["--results", str(results)]
    run = ["run", "--model", "bm25", "--task"]
    return {
        "run": ([*run, str(task), "--out", folders["out"]], 0),
        "run again --json": ([*run, str(task), "--out", folders["out"], "--json"], 0),
        "report": (report, 0),
        "report terminal": ([*report, "--format", "terminal"], 0),
        "report --json": ([*report, "--json"], 0),
        **{f"report {name}": ([*report, "--format", name], 2) for name in FILE_FORMATS},
        **{f"{name} file": ([*report, "--format", name, "--out", str(tmp_path / name)], 0) for name in FILE_FORMATS},
        "list results": ([*listed, *read], 0),
        "list results --json": ([*listed, *read, "--json"], 0),
        "list models": (["list", "models"], 0),
        "list tasks --json": (["list", "tasks", "--json"], 0),
        "show": (["show", "task", str(task)], 0),
        "compare": ([*compared, *read], 0),
        "compare --json": ([*compared, *read, "--json"], 0),
        "study show": (["study", "show", str(study)], 0),
        "study run": (["study", "run", str(study), "--out", folders["study"]], 0),
        "study status": (["study", "status", str(study), "--out", folders["study"]], 0),
        "doctor --json": (["doctor", "--json"], 0),
        "unknown name": (["run", "--model", "modèle", "--task", str(task)], 2),
        "run on a path": ([*run, str(odd), "--out", folders["odd"], "--json"], 0),
    }


@pytest.mark.parametrize("locale", LOCALES)
def test_every_command_answers_in_an_ascii_locale(
    commands: dict[str, tuple[list[str], int]], results: Path, tmp_path: Path, locale: str, own_cache: Path
) -> None:
    ran = Commands(tmp_path, LOCALES[locale])
    ran.run([words for words, _ in commands.values()])
    for number, (name, (words, code)) in enumerate(commands.items()):
        errors, output = ran.read(number, "err").decode(errors="replace"), ran.read(number)
        assert "Traceback" not in errors, (name, errors)
        assert ran.codes[number] == code, (name, ran.codes[number], errors, output[:500])
        if "--json" in words:
            found = json.loads(output.decode(ran.environment.get("PYTHONIOENCODING", "ascii")))
            if name == "report --json":
                assert {cell["model"] for cell in found} == set(MODELS)
        elif code:
            assert errors.startswith("error: "), (name, errors)
            assert "\nnext:  " in errors, (name, errors)
        else:
            assert output or name.endswith("file"), name
    report = build_report(results)
    for name in FILE_FORMATS:
        assert (tmp_path / name).read_text(encoding="utf-8") == report.format(name)
