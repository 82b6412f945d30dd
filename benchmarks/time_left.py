"""How well the time left is told: every figure that a run could have shown, against what it then really took.

    python -m benchmarks.time_left --model minilm-l6 --documents 3000 --runs 5

Texts have lengths drawn like those of passages, a few of them long. Every run starts from an empty store of vectors. An
error is |told - real| / real, at every batch of the phase that embeds documents, but for its last second.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.devices import collection
from retbench.cards.user_config import cache_folder
from retbench.cli.progress import PhaseProgress
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.records.phase_timer import GetPeakThroughput, NoProgress

HERE = Path(__file__).parent
TYPICAL, SPREAD, MOST = 60, 0.7, 400  # words of a text


class Watch(NoProgress):
    """Notes what would be shown, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float]] = []

    def begin(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """A phase starts."""
        self.phase, self.pace = phase, PhaseProgress(unit)

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Some more of it is done."""
        self.pace.add(done, total, tokens, left)
        seconds = self.pace.estimate_seconds_left()
        if "documents" in self.phase and seconds is not None:
            self.told.append((time.monotonic(), seconds))

    def end(self, phase: str, seconds: float) -> None:
        """The phase is over: nothing is told after it."""
        if "documents" in phase:
            self.over = time.monotonic()

    def errors(self) -> list[float]:
        """How far off each figure was, as a share of what was really left."""
        return [abs(told - (self.over - at)) / (self.over - at) for at, told in self.told if self.over - at > 1]


def words(draw: random.Random) -> int:
    """How many words a text has."""
    return min(MOST, 1 + int(TYPICAL * draw.lognormvariate(0, SPREAD)))


def one(model: str, task: Path, work: Path, weights: Path) -> dict[str, Any]:
    """One run from an empty store."""
    work.mkdir()
    (work / "weights").symlink_to(weights)
    os.environ["RETBENCH_CACHE"] = str(work)
    watch = Watch()
    (cell,) = evaluate(EvaluationRequest((model,), (str(task),), ("mean",), out=work / "results", progress=watch))
    assert cell.status == "done", cell
    errors, seconds = watch.errors(), watch.over - watch.told[0][0]
    found = {"seconds": seconds, "figures": len(errors), "median_error": statistics.median(errors)}
    print(", ".join(f"{key} {value:.3g}" for key, value in found.items()), flush=True)
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "time_left.json")
    options = parser.parse_args()
    weights = (cache_folder() / "weights").resolve()
    with tempfile.TemporaryDirectory() as folder:
        task = collection(Path(folder) / "texts", options.documents, words)
        runs = [one(options.model, task, Path(folder) / str(number), weights) for number in range(options.runs)]
    middle = statistics.median(run["median_error"] for run in runs)
    facts = {
        "command": " ".join(["python -m benchmarks.time_left", *sys.argv[1:]]),
        "runs": runs,
        "median_error": middle,
    }
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"the time left was {100 * middle:.1f}% off, the median of {len(runs)} runs' medians")


if __name__ == "__main__":
    main()
