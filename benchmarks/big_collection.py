"""Peak resident memory of reading a collection as large as MS MARCO's: 8,841,823 passages of about 335 characters.

    python benchmarks/big_collection.py [ROWS] [--out benchmarks/results/big_collection.json]

The texts are random; their number and length are those of MS MARCO. A BEIR folder is written to a temporary folder.
Then one new process checks it and stores it in the cache. Another opens it, streams every passage, draws a sample and
looks up the ids of a ranking. The peak of each must stay below 2 GB.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from retbench.cards.task import SourceSpec, TaskCard

PASSAGES, QUERIES, LENGTH, LIMIT_MB = 8_841_823, 6_980, 335, 2_000


def write_folder(folder: Path, rows: int) -> None:
    draw = random.Random(0)  # random words, not secrets
    words = " ".join(f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{n % 997}" for n in range(40_000))
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for number in range(rows):
            start = draw.randrange(len(words) - LENGTH)
            corpus.write(f'{{"_id": "{number}", "title": "", "text": "{words[start : start + LENGTH]}"}}\n')
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels/dev.tsv").open("w") as judgments:
        judgments.write("query-id\tcorpus-id\tscore\n")
        for number in range(QUERIES):
            queries.write(f'{{"_id": "q{number}", "text": "{words[number * 7 : number * 7 + 40]}"}}\n')
            judgments.write(f"q{number}\t{draw.randrange(rows)}\t1\n")


def build_card(folder: Path) -> TaskCard:
    return TaskCard("big", SourceSpec("folder", path=str(folder)), split="dev")


def store_collection(folder: Path) -> None:
    from retbench.corpora.open_collection import open_collection

    open_collection(build_card(folder))


def use_collection(folder: Path) -> None:
    from retbench.corpora.open_collection import open_collection

    collection = open_collection(build_card(folder))
    characters = sum(len(row.text) for row in collection.corpus)
    assert characters > 0.9 * LENGTH * len(collection.corpus)
    assert len(collection.sample(500).corpus) == 10_000
    ids = collection.corpus.read_ids()
    assert len({ids[row].as_py() for row in range(0, len(ids), 1000)}) > 1


def run_step(step: Callable[[Path], None], folder: Path, answers: "multiprocessing.Queue[tuple[float, float]]") -> None:
    started = time.perf_counter()
    step(folder)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    answers.put((time.perf_counter() - started, int(peak.split()[1]) * 1024 / 1e6))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("rows", nargs="?", type=int, default=PASSAGES)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["RETBENCH_CACHE"] = f"{place}/cache"
        folder = Path(place) / "big"
        write_folder(folder, given.rows)
        facts: dict[str, object] = {"passages": given.rows, "characters_each": LENGTH, "queries": QUERIES}
        facts |= {"corpus_mb": round((folder / "corpus.jsonl").stat().st_size / 1e6)}
        for step in (store_collection, use_collection):
            answers: multiprocessing.Queue[tuple[float, float]] = multiprocessing.get_context("spawn").Queue()
            child = multiprocessing.get_context("spawn").Process(target=run_step, args=(step, folder, answers))
            child.start()
            child.join()
            assert child.exitcode == 0
            seconds, peak = answers.get()
            facts[step.__name__] = {"seconds": round(seconds, 1), "peak_resident_mb": round(peak)}
            print(f"{step.__name__}: {seconds:.0f} s, peak {peak:,.0f} MB", flush=True)
            assert peak < LIMIT_MB
    facts |= {"command": " ".join(["python", *sys.argv]), "python": platform.python_version()}
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
