"""Time by the number of workers on a CPU: `retbench run --devices N` with one thread per worker, over the same texts.

    python benchmarks/devices.py --model minilm-l6 --documents 8192 --devices 1 2

Every run starts with an empty embedding cache. The seconds are wall-clock time of the phase that embeds and searches
the documents, without start and loading. Other work on the machine changes the numbers.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS, QUERIES = 24, 20
VOCABULARY = (
    "heart",
    "blood",
    "water",
    "steel",
    "bread",
    "river",
    "stone",
    "light",
    "sound",
    "index",
    "query",
    "cloud",
)


def write_collection(folder: Path, documents: int, words: Callable[[random.Random], int] = lambda _: WORDS) -> Path:
    """Write a BEIR folder of random words; all texts are equally long, or as `words` draws them."""
    draw = random.Random(1)

    def lines(prefix: str, count: int) -> str:
        texts = (" ".join(draw.choices(VOCABULARY, k=words(draw))) for _ in range(count))
        rows = ({"_id": f"{prefix}{n}", "text": text} for n, text in enumerate(texts))
        return "".join(json.dumps(row) + "\n" for row in rows)

    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines("d", documents))
    (folder / "queries.jsonl").write_text(lines("q", QUERIES))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(QUERIES))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def measure_run(model: str, task: Path, devices: int, work: Path) -> dict[str, Any]:
    """Run once with an empty embedding cache; the weights are those of the user's cache."""
    from retbench.system.user_config import get_cache_folder

    cache = work / f"cache{devices}"
    cache.mkdir()
    (cache / "weights").symlink_to((get_cache_folder() / "weights").resolve())
    # one worker with one thread limits the whole process to one thread; N workers share N threads
    own = {"RETBENCH_CACHE": str(cache), "OMP_NUM_THREADS": str(devices), "RETBENCH_DEVICE": "cpu"}
    command = [sys.executable, "-m", "retbench", "-q", "run", "--model", model, "--task", str(task), "--method", "mean"]
    command += ["--devices", str(devices), "--out", str(work / f"results{devices}"), "--json"]
    subprocess.run(command, env={**os.environ, **own}, check=True, stdout=subprocess.DEVNULL)
    (file,) = (work / f"results{devices}").rglob("record.json")
    record = json.loads(file.read_text())
    about = record["texts"]["document"]
    return {
        "devices": devices,
        "threads_a_worker": about["threads"],
        "seconds": record["cost"]["seconds"]["embed and search documents"],
        "worker_seconds": round(about["seconds"], 3),
        "tokens": about["tokens"],
        "scores": record["scores"]["ndcg_at_10"],
        "files": [(file.parent / name).read_bytes().hex()[-64:] for name in ("run.trec.gz", "per_query.parquet")],
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--documents", type=int, default=8192)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "devices.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = write_collection(Path(folder) / "texts", asked.documents)
        rows = [measure_run(asked.model, task, count, Path(folder)) for count in asked.devices]
    same = len({json.dumps([row.pop("scores"), row.pop("files")]) for row in rows}) == 1
    for row in rows:
        row["faster_by"] = round(rows[0]["seconds"] / row["seconds"], 3)
    load = [round(load, 2) for load in os.getloadavg()]
    facts = {
        "command": "python " + " ".join(["benchmarks/devices.py", *sys.argv[1:]]), "model": asked.model,
        "documents": asked.documents, "same_files": same, "runs": rows, "cores": os.cpu_count(),
        "load_average_afterwards": load, "processor": platform.processor() or platform.machine(),
    }  # fmt: skip
    asked.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
