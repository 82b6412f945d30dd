"""Soak test: a study that is killed many times gives identical results twice; memory stays flat over many tasks.

    python -m benchmarks.soak            all of it (make soak)
    python -m benchmarks.soak study      the study, two passes, each five minutes of work on one core
    python -m benchmarks.soak memory     a thousand tasks in one process

RETBENCH_SOAK_MINUTES and RETBENCH_SOAK_TASKS set the length. With RETBENCH_SOAK_FOLDER the files are kept in a folder,
and a soak test that was killed itself resumes there. The exit code is 1 if results differ or memory grows.
"""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retbench.system.durable_files import write_file_atomically
from tests import tiny_models

MINUTES = float(os.environ.get("RETBENCH_SOAK_MINUTES", "5"))
TASKS = int(os.environ.get("RETBENCH_SOAK_TASKS", "1000"))
LIFETIME_SECONDS = (8.0, 40.0)  # seconds before a process is killed, including its start
DOCUMENTS, QUERIES = 400, 20
METHODS = ("last", "mean", "weighted")
MAX_GROWTH_MB = 32  # allowed growth between a tenth of the tasks and the last one
POINTS = 10
COMPARED = ("per_query.parquet", "run.trec.gz")


def write_collection(folder: Path, seed: int, documents: int, queries: int) -> Path:
    """A BEIR folder of random sentences."""
    draw, words = random.Random(seed), " ".join(tiny_models.SENTENCES).split()
    (folder / "qrels").mkdir(parents=True, exist_ok=True)

    def lines(kind: str, count: int, longest: int) -> str:
        texts = (" ".join(draw.choices(words, k=draw.randint(3, longest))) for _ in range(count))
        return "".join(
            json.dumps({"_id": f"{kind}{n}", "title": "", "text": text}) + "\n" for n, text in enumerate(texts)
        )

    (folder / "corpus.jsonl").write_text(lines("d", documents, 60))
    (folder / "queries.jsonl").write_text(lines("q", queries, 8))
    judged = "".join(f"q{n}\td{draw.randrange(documents)}\t1\n" for n in range(queries))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@dataclass(frozen=True)
class StudySoak:
    """A study and its two passes in one folder."""

    folder: Path

    @property
    def build_model(self) -> Path:
        """Write a real decoder with random weights."""
        return self.folder / "tiny"

    @property
    def plan_file(self) -> Path:
        """The plan of the study."""
        return self.folder / "soak.toml"

    def get_results_folder(self, name: str) -> Path:
        """The results folder of a pass."""
        return self.folder / name

    def start_process(self, name: str, plan: Path) -> subprocess.Popen[bytes]:
        """Start one process of a pass, with its results folder and cache."""
        words = ["-q", "study", "run", str(plan), "--out", str(self.get_results_folder(name))]
        own = {**os.environ, "RETBENCH_CACHE": str(self.folder / f"{name}-cache")}
        with (self.folder / f"{name}.said").open("ab") as said:
            return subprocess.Popen([sys.executable, "-m", "retbench", *words], env=own, stdout=said, stderr=said)

    def choose_task_count(self) -> None:
        """Choose the number of tasks for the requested time, measured with one and with three tasks."""
        if self.plan_file.exists():
            return
        if not self.build_model.exists():
            tiny_models.build_model(self.build_model)
        seconds = []
        for tasks in (1, 3):  # the difference is the time of two tasks without the start
            plan = self.write_plan(self.folder / f"calm-{tasks}.toml", tasks)
            started = time.monotonic()
            assert self.start_process(f"calm-{tasks}", plan).wait() == 0, (
                self.folder / f"calm-{tasks}.said"
            ).read_text()
            seconds.append(time.monotonic() - started)
        each = max(0.2, (seconds[1] - seconds[0]) / 2)
        self.write_plan(self.plan_file, max(3, round(MINUTES * 60 / each)))

    def write_plan(self, plan: Path, tasks: int) -> Path:
        """Write a plan with `tasks` tasks."""
        names = [str(write_collection(self.folder / f"task-{n}", n, DOCUMENTS, QUERIES)) for n in range(tasks)]
        lists = {"models": ["bm25", str(self.build_model)], "tasks": names, "methods": list(METHODS)}
        stage = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lists.items())
        write_file_atomically(plan, f'name = "soak"\ntitle = "Soak"\n[[stages]]\nname = "all"\n{stage}\n'.encode())
        return plan

    def run_until_finished(self, name: str, seed: int) -> int:
        """Start and kill the study until it finishes; return the number of kills."""
        log, draw = self.folder / f"{name}.kills", random.Random(f"{seed} {time.time_ns()}")
        done, patience = (
            0,
            1,
        )  # on a busy machine a process may be killed before it starts working: the next one gets more time
        while True:
            process = self.start_process(name, self.plan_file)
            with suppress(subprocess.TimeoutExpired):
                if code := process.wait(patience * draw.uniform(*LIFETIME_SECONDS)):
                    raise SystemExit(f"{name} ended with {code}: {(self.folder / f'{name}.said').read_text()[-2000:]}")
                return log.stat().st_size if log.exists() else 0
            process.kill()
            process.wait()
            with log.open("a") as out:
                out.write("x")
            now = len(read_finished_cells(self.get_results_folder(name)))
            done, patience = now, 1 if now > done else 2 * patience
            print(f"{name}: killed, {now} cells are finished", flush=True)


def read_finished_cells(out: Path) -> dict[str, Any]:
    """The scores and the file contents of every finished cell."""
    records = [file for file in out.rglob("record.json") if not file.parent.name.endswith(".partial")]
    return {
        file.parent.relative_to(out).as_posix(): (
            json.loads(file.read_text())["scores"],
            *((file.parent / name).read_bytes() for name in COMPARED),
        )
        for file in records
    }


def run_study_soak(folder: Path) -> bool:
    """Run two passes with kills, and one task without; return whether all results agree."""
    soak = StudySoak(folder)
    soak.choose_task_count()
    passes = {}
    for seed, name in enumerate(("first", "second")):
        started = time.monotonic()
        kills = soak.run_until_finished(name, seed)
        passes[name] = read_finished_cells(soak.get_results_folder(name))
        print(
            f"{name}: {len(passes[name])} cells, killed {kills} times, {time.monotonic() - started:.0f} s", flush=True
        )
    calm = read_finished_cells(soak.get_results_folder("calm-3"))
    same = passes["first"] == passes["second"] and calm.items() <= passes["first"].items()
    print(f"{len(calm)} cells were run without a kill before; all of the same bytes: {'yes' if same else 'NO'}")
    return same and len(calm) > 0


def get_resident_mb() -> float:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_memory_soak(folder: Path) -> bool:
    """Run many small tasks, lexical and dense, in this process; return whether its memory stayed flat."""
    from retbench.pipelines.evaluation.evaluate import evaluate
    from retbench.pipelines.evaluation.request import EvaluationRequest

    os.environ["RETBENCH_CACHE"] = str(folder / "memory-cache")
    model = folder / "tiny-memory"
    if not model.exists():
        tiny_models.build_model(model)
    tasks = (write_collection(folder / "small" / f"small-{n}", n, 20, 3) for n in range(TASKS))
    points: list[tuple[int, float]] = []
    step = max(1, TASKS // POINTS)
    for start in range(0, TASKS, step):
        names = tuple(map(str, islice(tasks, step)))
        cells = evaluate(EvaluationRequest(("bm25", str(model)), names, ("mean",), out=folder / "memory"))
        assert all(cell.status == "done" for cell in cells)
        points.append((start + len(names), get_resident_mb()))
        print(f"{points[-1][0]:>6} tasks  {points[-1][1]:8.1f} MB", flush=True)
    grown = points[-1][1] - points[0][1]
    print(f"grown by {grown:.1f} MB between {points[0][0]} and {points[-1][0]} tasks; the bound is {MAX_GROWTH_MB} MB")
    return grown <= MAX_GROWTH_MB


def main() -> None:
    asked = sys.argv[1:] or ["study", "memory"]
    with TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("RETBENCH_SOAK_FOLDER") or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = [{"study": run_study_soak, "memory": run_memory_soak}[name](folder) for name in asked]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
