"""The first minutes of a new user (`make demo`): BM25, an encoder and a decoder on one leaderboard.

    .venv/bin/python benchmarks/demo.py --minutes 3

It runs the commands that a user would type and prints them. It sizes itself: BM25 and the encoder take the largest
sample of queries that fits a small part of the time, and the decoder takes the same sample. Per token the decoder takes
ten times as long where bfloat16 is slow (AVX2, one thread: 256 tokens per second, the encoder 2,512), and less where it
is fast. Cached embeddings of the models are removed first, so that the run computes them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from retbench.system.checked_json import parse_checked_json

RETBENCH = Path(sys.executable).with_name("retbench")
RESULTS = Path("demo-results")
TASK = "stdlib-doc"  # its documents are short, so many fit
LEXICAL, ENCODER, DECODER = "bm25", "minilm-l6", "smollm2-135m-instruct-q4"
TRAINED, RECIPE = "my-retriever", "ten-steps"  # of the commands that are printed at the end
TOLD = ((ENCODER, LEXICAL), (LEXICAL, DECODER))  # the pairs told in words
ENCODER_SHARE = 1 / 18  # of the minutes; then the decoder takes up to half of them, and starts and fetches the rest
EXPLANATION = """\
Better: if all models of the board were equally good, chance would show such a difference on fewer than 5 of 100 boards.
Open: on more of them; more queries may decide (make demo DEMO_MINUTES=10)."""


class Demo:
    """The demo's commands, and how long they took."""

    def __init__(self) -> None:
        self.started, self.first_board = time.monotonic(), 0.0
        self.sample: list[str] = []

    def announce(self, text: str) -> None:
        """Print what comes next, with the seconds so far."""
        print(f"\n== {time.monotonic() - self.started:.0f} s: {text}", flush=True)

    def run(self, *words: str) -> None:
        """Print and run a command; its failure ends the demo."""
        print(f"$ retbench {' '.join(words)}", flush=True)
        code = subprocess.run([RETBENCH, *words], check=False).returncode
        if code:
            sys.exit(code)

    def evaluate(self, minutes: float) -> None:
        """Run the three models and print their leaderboard."""
        self.announce("BM25, which needs no model, and a small encoder, on as many queries as fit")
        self.run("fetch", TASK, ENCODER)
        self.run(*select_models(LEXICAL, ENCODER), "--minutes", f"{minutes * ENCODER_SHARE:.2g}")
        self.run("report", str(RESULTS))
        self.first_board = time.monotonic() - self.started
        self.sample = read_sample()

        self.announce("a decoder as it is: a language model that never learned to embed")
        self.run("fetch", DECODER)
        self.run(*select_models(DECODER), "--method", "mean", *self.sample)

        self.announce("the board")
        self.run("report", str(RESULTS), "--out", str(RESULTS / "LEADERBOARD.md"))
        print((RESULTS / "LEADERBOARD.md").read_text())

    def summarize(self) -> None:
        """Print what was seen in words, the cost, and what to do next."""
        self.announce("in words")
        board = read_board()
        for a, b in TOLD:
            print(describe_difference(board[a], board[b]))
        print(EXPLANATION)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"\nThe first board came after {self.first_board:.0f} s, everything after "
            f"{time.monotonic() - self.started:.0f} s; {used.ru_utime + used.ru_stime:.0f} CPU seconds."
        )
        here = Path.cwd()
        path = RETBENCH.relative_to(here) if RETBENCH.is_relative_to(here) else RETBENCH
        print("Next: train the decoder in ten steps, and see its row on the same board (docs/finetune.md)")
        print(f"  {path} finetune {TASK} --model {DECODER} --recipe {RECIPE} --name {TRAINED}")
        print(f"  {path} {' '.join([*select_models(TRAINED), *self.sample])}")
        print(f"  {path} report {RESULTS}")
        print("or your own texts (corpus.jsonl, queries.jsonl, qrels/test.tsv in a folder; docs/getting-started.md)")
        print(f"  {path} run --model {LEXICAL} --model {ENCODER} --task ./my-folder --minutes 3")


def select_models(*models: str) -> list[str]:
    """Return the words that run models on the demo's task."""
    return ["run", "--task", TASK, "--out", str(RESULTS), *(word for model in models for word in ("--model", model))]


def read_sample() -> list[str]:
    """Return the option for the sample that the first command found; none if it used all queries."""
    (stored,) = parse_checked_json((RESULTS / "samples.json").read_bytes()).values()
    return ["--sample", str(stored["sample"])] if stored["sample"] else []


def read_board() -> dict[str, dict[str, Any]]:
    """Return the rows of the leaderboard by model."""
    command = [str(RETBENCH), "report", str(RESULTS), "--json"]
    cells = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {cell["model"]: cell for cell in cells}


def describe_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Say in words whether two rows of a leaderboard differ: rows that share a letter may be equally good."""
    better, worse = sorted((a, b), key=lambda cell: cell["main_score"], reverse=True)
    queries = "all queries" if a["queries"] == "all" else f"a {a['queries']} queries"
    points = f"{100 * (better['main_score'] - worse['main_score']):.1f} points of nDCG@10 on {queries}"
    if set(a["letters"]) & set(b["letters"]):
        return f"- Whether {better['model']} or {worse['model']} is better is open: {points} may be chance."
    return f"- {better['model']} is better than {worse['model']}, by {points}."


def main() -> None:
    """Run the demo in the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    minutes = parser.parse_args().minutes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    shutil.rmtree(RESULTS, ignore_errors=True)
    models = [word for model in (ENCODER, DECODER) for word in ("--model", model)]
    subprocess.run([RETBENCH, "cache", "prune", *models], check=True, capture_output=True)
    demo = Demo()
    demo.evaluate(minutes)
    demo.summarize()


if __name__ == "__main__":
    main()
