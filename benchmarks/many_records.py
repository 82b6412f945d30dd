"""Many finished runs: how long the commands that read a results folder take, and how much memory.

    python -m benchmarks.many_records --count 100000 --models 100

Records of made-up scores are written for `models` models on as many tasks as are needed. One run is written as every
run is; the others are copies with another model, task, settings-id and scores, and share files of rankings.
Then `report`, `list results` and `compare` are run, each in a process of its own. Their processor seconds and peak
memory are added to results/many_records.json. (`verify` reads one run and its collection, so it is not measured.)
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retbench.records.results_folder import RECORD_FILE, TREC_FILE
from retbench.records.scored_run import PER_QUERY_FILE
from retbench.store.digest import compute_digest
from tests.finished_runs import METRIC, write_finished_run

RESULT_FILE = Path(__file__).parent / "results" / "many_records.json"
QUERIES = 50
MAX_LINKS = 50_000  # of one file; ext4 allows 65,000


def write_records(root: Path, count: int, models: int) -> list[Path]:
    """Write so many runs, of `models` models on each task; return their folders."""
    rng, folders = random.Random(1), []
    first = write_finished_run(root / "first", "model", "task", [0.5] * QUERIES)
    facts, table = json.loads((first / RECORD_FILE).read_text()), pq.read_table(first / PER_QUERY_FILE)
    for number in range(count):
        task, model = f"task-{number // models:05}", f"model-{number % models:05}"
        quality = rng.uniform(0.2, 0.8)
        scores = [min(1.0, max(0.0, rng.gauss(quality, 0.3))) for _ in range(QUERIES)]
        settings = {**facts["settings"], "lexical": {"name": model}, "collection": compute_digest([task])}
        settings_id = compute_digest(settings)[:12]
        cards = {**facts["cards"], "model": {**facts["cards"]["model"], "name": model}}
        cards["task"] = {**facts["cards"]["task"], "name": task}
        collection = {**facts["collection"], "fingerprint": settings["collection"], "corpus": settings["collection"]}
        record = {**facts, "model": model, "task": task, "settings": settings, "settings_id": settings_id}
        record |= {"cards": cards, "collection": collection, "scores": {METRIC: sum(scores) / QUERIES}}
        folder = root / "many" / "mine" / task / model / settings_id
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text(json.dumps(record))
        column = table.schema.get_field_index(METRIC)
        pq.write_table(table.set_column(column, METRIC, pa.array(scores)), folder / PER_QUERY_FILE)
        if number % MAX_LINKS == 0:
            ranking = shutil.copy(first / TREC_FILE, root / f"{number}.trec.gz")
        os.link(ranking, folder / TREC_FILE)
        folders.append(folder)
    return folders


def measure_command(words: list[str]) -> dict[str, Any]:
    """The processor seconds and the peak memory of a command in a process of its own, and its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", MEASURED.format(words=words)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    *_, peak = completed.stderr.strip().splitlines() or ["0"]
    return {
        "cpu_seconds": round(seconds, 1), "peak_memory_mb": round(int(peak) / 1e3), "exit_code": completed.returncode,
        "output_kb": len(completed.stdout) // 1000,
    }  # fmt: skip


MEASURED = """
import resource, sys
from retbench.cli.main import app
try:
    app({words})
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def main() -> int:
    """Write the records and measure the commands; exit 1 if one fails."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=100_000)
    options.add_argument("--models", type=int, default=100, help="on each task")
    options.add_argument("--command", action="append", help="only this one; may be repeated")
    options.add_argument("--out", type=Path, default=RESULT_FILE)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = write_records(Path(place), given.count, given.models)
        results = str(Path(place) / "many")
        commands = {
            "report": ["report", results],
            "report html": ["report", results, "--format", "html", "--out", f"{place}/page.html"],
            "report json": ["report", results, "--json"],
            "list results": ["list", "results", "--results", results],
            "compare": ["compare", folders[0].name, folders[1].name, "--results", results],
        }
        measured = {name: measure_command(commands[name]) for name in given.command or commands}
    facts = {"models": given.models, "queries": QUERIES, "python": platform.python_version(), **measured}
    stored = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps({**stored, f"{given.count} of {given.models}": facts}, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
    return 1 if any(facts["exit_code"] for facts in measured.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
