"""The soak: a study that is killed at random again and again, twice, ends identical; memory stays flat over many tasks.

    python -m benchmarks.soak            all of it (make soak)
    python -m benchmarks.soak study      the study, two passes, each five minutes of work on one core
    python -m benchmarks.soak memory     a thousand tasks in one process

RETBENCH_SOAK_MINUTES and RETBENCH_SOAK_TASKS make it shorter or longer. RETBENCH_SOAK_FOLDER keeps what it does in a
folder: a soak that is itself killed goes on there. It ends with exit code 1 when something differs or grows.
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

from retbench.store.shard_store import write_file_atomically
from tests import tiny_models

MINUTES = float(os.environ.get("RETBENCH_SOAK_MINUTES", "5"))
TASKS = int(os.environ.get("RETBENCH_SOAK_TASKS", "1000"))
GAPS = (8.0, 40.0)  # seconds a process lives, start included, before it is killed
DOCUMENTS, QUERIES = 400, 20
METHODS = ("last", "mean", "weighted")
BOUND_MB = 32  # what a process may have grown by between a tenth of the tasks and the last of them
POINTS = 10
COMPARED = ("per_query.parquet", "run.trec.gz")


def collection(folder: Path, seed: int, documents: int, queries: int) -> Path:
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
class Soak:
    """A study and its two passes in one folder."""

    folder: Path

    @property
    def model(self) -> Path:
        """Random weights, a real decoder."""
        return self.folder / "tiny"

    @property
    def plan(self) -> Path:
        """The study."""
        return self.folder / "soak.toml"

    def out(self, name: str) -> Path:
        """Where a pass leaves its results."""
        return self.folder / name

    def start(self, name: str, plan: Path) -> subprocess.Popen[bytes]:
        """One process of a pass, with results and a cache of its own."""
        words = ["-q", "study", "run", str(plan), "--out", str(self.out(name))]
        own = {**os.environ, "RETBENCH_CACHE": str(self.folder / f"{name}-cache")}
        with (self.folder / f"{name}.said").open("ab") as said:
            return subprocess.Popen([sys.executable, "-m", "retbench", *words], env=own, stdout=said, stderr=said)

    def prepare(self) -> None:
        """As many tasks as take the wished time, measured on one and on three."""
        if self.plan.exists():
            return
        if not self.model.exists():
            tiny_models.build(self.model)
        seconds = []
        for tasks in (1, 3):  # the difference is what two of them take, without the start
            plan = self.write(self.folder / f"calm-{tasks}.toml", tasks)
            started = time.monotonic()
            assert self.start(f"calm-{tasks}", plan).wait() == 0, (self.folder / f"calm-{tasks}.said").read_text()
            seconds.append(time.monotonic() - started)
        each = max(0.2, (seconds[1] - seconds[0]) / 2)
        self.write(self.plan, max(3, round(MINUTES * 60 / each)))

    def write(self, plan: Path, tasks: int) -> Path:
        """A plan with so many tasks."""
        names = [str(collection(self.folder / f"task-{n}", n, DOCUMENTS, QUERIES)) for n in range(tasks)]
        lists = {"models": ["bm25", str(self.model)], "tasks": names, "methods": list(METHODS)}
        stage = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lists.items())
        write_file_atomically(plan, f'name = "soak"\ntitle = "Soak"\n[[stages]]\nname = "all"\n{stage}\n'.encode())
        return plan

    def run(self, name: str, seed: int) -> int:
        """Start it and kill it until it comes through; how often it was killed."""
        log, draw = self.folder / f"{name}.kills", random.Random(f"{seed} {time.time_ns()}")
        done, patience = 0, 1  # on a busy machine a process may be killed before it began: the next one lives longer
        while True:
            process = self.start(name, self.plan)
            with suppress(subprocess.TimeoutExpired):
                if code := process.wait(patience * draw.uniform(*GAPS)):
                    raise SystemExit(f"{name} ended with {code}: {(self.folder / f'{name}.said').read_text()[-2000:]}")
                return log.stat().st_size if log.exists() else 0
            process.kill()
            process.wait()
            with log.open("a") as out:
                out.write("x")
            now = len(finished(self.out(name)))
            done, patience = now, 1 if now > done else 2 * patience
            print(f"{name}: killed, {now} cells are finished", flush=True)


def finished(out: Path) -> dict[str, Any]:
    """Every finished cell: its scores, and the bytes of its files."""
    records = [file for file in out.rglob("record.json") if not file.parent.name.endswith(".partial")]
    return {
        file.parent.relative_to(out).as_posix(): (
            json.loads(file.read_text())["scores"],
            *((file.parent / name).read_bytes() for name in COMPARED),
        )
        for file in records
    }


def study(folder: Path) -> bool:
    """Two passes under fire, and one task without; whether all agree."""
    soak = Soak(folder)
    soak.prepare()
    passes = {}
    for seed, name in enumerate(("first", "second")):
        started = time.monotonic()
        kills = soak.run(name, seed)
        passes[name] = finished(soak.out(name))
        print(
            f"{name}: {len(passes[name])} cells, killed {kills} times, {time.monotonic() - started:.0f} s", flush=True
        )
    calm = finished(soak.out("calm-3"))
    same = passes["first"] == passes["second"] and calm.items() <= passes["first"].items()
    print(f"{len(calm)} cells were run without a kill before; all of the same bytes: {'yes' if same else 'NO'}")
    return same and len(calm) > 0


def resident_mb() -> float:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(folder: Path) -> bool:
    """Many small tasks, words and vectors, one after the other in this process; whether it stayed as large."""
    from retbench.pipelines.evaluation.evaluate import evaluate
    from retbench.pipelines.evaluation.request import EvaluationRequest

    os.environ["RETBENCH_CACHE"] = str(folder / "memory-cache")
    model = folder / "tiny-memory"
    if not model.exists():
        tiny_models.build(model)
    tasks = (collection(folder / "small" / f"small-{n}", n, 20, 3) for n in range(TASKS))
    points: list[tuple[int, float]] = []
    step = max(1, TASKS // POINTS)
    for start in range(0, TASKS, step):
        names = tuple(map(str, islice(tasks, step)))
        cells = evaluate(EvaluationRequest(("bm25", str(model)), names, ("mean",), out=folder / "memory"))
        assert all(cell.status == "done" for cell in cells)
        points.append((start + len(names), resident_mb()))
        print(f"{points[-1][0]:>6} tasks  {points[-1][1]:8.1f} MB", flush=True)
    grown = points[-1][1] - points[0][1]
    print(f"grown by {grown:.1f} MB between {points[0][0]} and {points[-1][0]} tasks; the bound is {BOUND_MB} MB")
    return grown <= BOUND_MB


def main() -> None:
    asked = sys.argv[1:] or ["study", "memory"]
    with TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("RETBENCH_SOAK_FOLDER") or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = [{"study": study, "memory": memory}[name](folder) for name in asked]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
