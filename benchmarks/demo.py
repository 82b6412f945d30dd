"""The first minutes of a new user (`make demo`): BM25, an encoder, a decoder, and the decoder after ten training steps.

    .venv/bin/python benchmarks/demo.py --minutes 3

It prints the commands that a user would type, and runs them in this process, so that libraries are imported once. It
sizes itself: BM25 and the encoder take the largest sample of queries that fits a small part of the time, and the
decoder takes the same sample. Per token the decoder takes ten times as long as the encoder where bfloat16 is slow
(AVX2, one thread: 256 tokens per second, the encoder 2,512), and three times where it is fast. The training is the last
step; it is left out if the speed of the decoder says that it does not fit. Cached embeddings of the models are removed
first, so that the run computes them. The trained model and its card are files of the results folder, not of the cache.
"""

import argparse
import contextlib
import io
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retbench.cli.main import main as run_retbench
from retbench.engines.device import has_fast_bf16
from retbench.pipelines.report import build_report
from retbench.system.checked_json import parse_checked_json

RESULTS = Path("demo-results")
TASK = "stdlib-doc"  # its documents are short, so many fit
LEXICAL, ENCODER, DECODER = "bm25", "minilm-l6", "smollm2-135m-instruct-q4"
TRAINED, RECIPE = "smollm2-after-ten-steps", "ten-steps"
TOLD = ((TRAINED, DECODER), (TRAINED, LEXICAL), (ENCODER, LEXICAL), (LEXICAL, DECODER))  # the pairs told in words
EMBEDDING_SHARE = 0.4  # of the minutes, by the encoder and twice by the decoder; the rest: starts, fetches, training
FAST_RATIO, SLOW_RATIO = 3, 10  # seconds of the decoder for one of the encoder, where bfloat16 is fast or slow
TRAINING_TOKENS = 28_000  # what the decoder embeds while it could be loaded, trained and saved
CARDS_VARIABLE = "RETBENCH_CARDS"  # a model that is trained into its folders needs no card in the cache
EXPLANATION = """\
Better: if all models of the board were equally good, chance would show such a difference on fewer than 5 of 100 boards.
Open: on more of them; more queries may decide (make demo DEMO_MINUTES=10)."""


def run_command(*words: str) -> int:
    """Run a command of retbench in this process; return its exit code."""
    sys.argv = ["retbench", *words]
    try:
        run_retbench()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


class Demo:
    """The demo's commands, and how long they took."""

    def __init__(
        self, minutes: float, run: Callable[..., int] = run_command, read_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.minutes, self.run_command, self.read_clock = minutes, run, read_clock
        self.started, self.first_board = read_clock(), 0.0
        self.sample: list[str] = []
        self.is_trained = False

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self.read_clock() - self.started

    def announce(self, text: str) -> None:
        """Print what comes next, with the seconds so far."""
        print(f"\n== {self.seconds:.0f} s: {text}", flush=True)

    def run(self, *words: str) -> float:
        """Print and run a command, and return its seconds; its failure ends the demo."""
        print(f"$ retbench {' '.join(words)}", flush=True)
        started = self.read_clock()
        if code := self.run_command(*words):
            sys.exit(code)
        return self.read_clock() - started

    def run_all(self) -> None:
        """Run the models as they are, train the decoder if that fits, and say what was seen."""
        self.announce("BM25, which needs no model, and a small encoder, on as many queries as fit")
        self.run("fetch", TASK, ENCODER)
        self.run(*select_models(LEXICAL, ENCODER), "--minutes", f"{choose_encoder_minutes(self.minutes):.2g}")
        self.run("report", str(RESULTS))
        self.first_board = self.seconds
        self.sample = read_sample()

        self.announce("a decoder as it is: a language model that never learned to embed")
        self.run("fetch", DECODER)
        self.train(self.run(*select_models(DECODER), "--method", "mean", *self.sample))

        self.announce("the board")
        self.run("report", str(RESULTS), "--out", str(RESULTS / "LEADERBOARD.md"))
        print((RESULTS / "LEADERBOARD.md").read_text())
        self.summarize()

    def train(self, run_seconds: float) -> None:
        """Train the decoder and run it again, if that fits; `run_seconds` is what its first run took."""
        needed = TRAINING_TOKENS / read_board()[DECODER]["tokens_per_second"] + run_seconds
        left = 60 * self.minutes - self.seconds
        self.is_trained = needed < left
        if not self.is_trained:
            self.announce(
                f"no training: it and the run of the new model would take about {needed:.0f} s more, and of the "
                f"{self.minutes:g} minutes {max(0, left):.0f} s are left; the commands are below"
            )
            return
        self.announce("the same decoder after ten steps of training, each on 16 functions and their descriptions")
        print(f"$ export {CARDS_VARIABLE}={RESULTS}  # names of models are looked up there too", flush=True)
        for words in self.list_training_commands():
            self.run(*words)

    def list_training_commands(self) -> list[list[str]]:
        """Return the words that train the decoder and run the result."""
        dtype = ["--set", "dtype=bfloat16"] if has_fast_bf16() else []
        folder = RESULTS / "model_cards" / TRAINED
        train = ["finetune", TASK, "--model", DECODER, "--recipe", RECIPE, "--name", TRAINED, "--out", str(folder)]
        return [[*train, *dtype], [*select_models(TRAINED), *self.sample]]

    def summarize(self) -> None:
        """Print what was seen in words, the cost, and what to do next."""
        self.announce("in words")
        board = read_board()
        for a, b in TOLD:
            if {a, b} <= set(board):
                print(describe_difference(board[a], board[b]))
        print(EXPLANATION)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(
            f"\nThe first board came after {self.first_board:.0f} s, everything after {self.seconds:.0f} s; "
            f"{sum(usage.ru_utime + usage.ru_stime for usage in used):.0f} CPU seconds."
        )
        self.print_next_commands()

    def print_next_commands(self) -> None:
        """Print the commands that lead on."""
        here, program = Path.cwd(), Path(sys.executable).with_name("retbench")
        path = program.relative_to(here) if program.is_relative_to(here) else program
        if not self.is_trained:
            print("Next: train the decoder in ten steps, and see its row on the same board (docs/finetune.md)")
            print(f"  export {CARDS_VARIABLE}={RESULTS}")
            for words in [*self.list_training_commands(), ["report", str(RESULTS)]]:
                print(f"  {path} {' '.join(words)}")
        print("Next: your own texts (corpus.jsonl, queries.jsonl, qrels/test.tsv in a folder; docs/getting-started.md)")
        print(f"  {path} run --model {LEXICAL} --model {ENCODER} --task ./my-folder --minutes 3")


def choose_encoder_minutes(minutes: float) -> float:
    """Choose the minutes of the encoder, so that the decoder can run twice on the same queries."""
    return EMBEDDING_SHARE * minutes / (1 + 2 * (FAST_RATIO if has_fast_bf16() else SLOW_RATIO))


def select_models(*models: str) -> list[str]:
    """Return the words that run models on the demo's task."""
    return ["run", "--task", TASK, "--out", str(RESULTS), *(word for model in models for word in ("--model", model))]


def read_sample() -> list[str]:
    """Return the option for the sample that the first command found; none if it used all queries."""
    (stored,) = parse_checked_json((RESULTS / "samples.json").read_bytes()).values()
    return ["--sample", str(stored["sample"])] if stored["sample"] else []


def read_board() -> dict[str, dict[str, Any]]:
    """Return the rows of the leaderboard by model."""
    return {cell["model"]: cell for cell in build_report(RESULTS).list_cells()}


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
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait in a loop slow a training on a busy machine
    os.environ[CARDS_VARIABLE] = os.pathsep.join(filter(None, (os.environ.get(CARDS_VARIABLE), str(RESULTS))))
    shutil.rmtree(RESULTS, ignore_errors=True)
    demo = Demo(minutes)
    models = [word for model in (ENCODER, DECODER, TRAINED) for word in ("--model", model)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_command("cache", "prune", *models)
    if code:
        sys.exit(code)
    demo.run_all()


if __name__ == "__main__":
    main()
