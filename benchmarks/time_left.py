"""Accuracy of the time-left estimate: every estimate of a run against the time that was really left.

    python -m benchmarks.time_left --model minilm-l6 --documents 3000 --runs 5

The text lengths are distributed like those of passages, with a few long ones. Every run starts with an empty embedding
cache. An error is |estimate - real| / real, at every batch of the phase that embeds documents, except its last second.
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

from benchmarks.devices import write_collection
from retbench.cli.progress import PhaseProgress
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.records.phase_timer import GetPeakThroughput, NoProgress
from retbench.system.user_config import get_cache_folder

HERE = Path(__file__).parent
TYPICAL, SPREAD, MOST = 60, 0.7, 400  # words of a text


class TimeLeftRecorder(NoProgress):
    """Records every estimate and its time."""

    def __init__(self) -> None:
        self.estimates: list[tuple[float, float]] = []

    def begin_phase(self, phase: str, unit: str, reach: GetPeakThroughput) -> None:
        """Start a phase."""
        self.phase, self.pace = phase, PhaseProgress(unit)

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        """Record the estimate after a batch."""
        self.pace.add(done, total, tokens, left)
        seconds = self.pace.estimate_seconds_left()
        if "documents" in self.phase and seconds is not None:
            self.estimates.append((time.monotonic(), seconds))

    def end_phase(self, phase: str, seconds: float) -> None:
        """Record the end of the phase."""
        if "documents" in phase:
            self.over = time.monotonic()

    def compute_errors(self) -> list[float]:
        """The relative error of each estimate."""
        return [abs(told - (self.over - at)) / (self.over - at) for at, told in self.estimates if self.over - at > 1]


def draw_word_count(draw: random.Random) -> int:
    """Draw the number of words of a text."""
    return min(MOST, 1 + int(TYPICAL * draw.lognormvariate(0, SPREAD)))


def measure_run(model: str, task: Path, work: Path, weights: Path) -> dict[str, Any]:
    """Run once with an empty embedding cache."""
    work.mkdir()
    (work / "weights").symlink_to(weights)
    os.environ["RETBENCH_CACHE"] = str(work)
    watch = TimeLeftRecorder()
    (cell,) = evaluate(EvaluationRequest((model,), (str(task),), ("mean",), out=work / "results", progress=watch))
    assert cell.status == "done", cell
    errors, seconds = watch.compute_errors(), watch.over - watch.estimates[0][0]
    found = {
        "seconds": seconds,
        "load": os.getloadavg()[0],  # processes that ran or waited in the last minute, this one's threads among them
        "figures": len(errors),
        "median_error": statistics.median(errors),
    }
    print(", ".join(f"{key} {value:.3g}" for key, value in found.items()), flush=True)
    return found


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "time_left.json")
    options = parser.parse_args()
    weights = (get_cache_folder() / "weights").resolve()
    with tempfile.TemporaryDirectory() as folder:
        task = write_collection(Path(folder) / "texts", options.documents, draw_word_count)
        runs = [measure_run(options.model, task, Path(folder) / str(number), weights) for number in range(options.runs)]
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
