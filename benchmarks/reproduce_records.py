"""Runs committed cells again and compares them with their records: settings-id, run file and scores.

    python benchmarks/reproduce_records.py                       # BM25 and the encoder, some five minutes
    python benchmarks/reproduce_records.py --models smollm2-135m-instruct-q4 --documents 1000

Use it to check a change that must not change any result, such as a refactoring. The settings-id and the scores must be
equal. A document must have the same score to 1e-5, because the last bits of a float32 sum depend on the processor: two
documents whose scores are that close may change places in the run file.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.records.scored_run import read_raw_scores

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RETBENCH_SHARED", ROOT.parent / "shared")) / "collections"
MODELS = ("bm25", "minilm-l6")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class CommittedCell:
    """A record under results/ and the command that makes it again."""

    folder: Path
    record: dict[str, Any]

    def command(self, out: Path) -> list[str]:
        """`retbench run` with the settings of the record."""
        settings, task = self.record["settings"], self.record["task"]
        task = str(SHARED / task) if self.record["suite"] == "custom" else task
        words = ["run", "--model", self.record["model"], "--task", task, "--out", str(out), "--json"]
        if settings["sample"] is not None:
            words += ["--sample", str(settings["sample"])]
        if encoder := settings["encoder"]:
            words += ["--method", self.record["method"], "--set", f"max_length={encoder['document_limit']}"]
            words += ["--set", f"dtype={encoder['dtype']}"]
        return [sys.executable, "-m", "retbench", *words]


def find_cells(models: list[str], documents: int) -> Iterator[CommittedCell]:
    """Cells of these models without rerankers, over collections that are at hand and small enough."""
    for file in sorted((ROOT / "results").rglob("record.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        at_hand = record["suite"] != "custom" or (SHARED / record["task"]).exists()
        small = record["collection"]["documents"] <= documents
        if record["model"] in models and not record["settings"]["rerankers"] and at_hand and small:
            yield CommittedCell(file.parent, record)


def read_run(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Documents and their raw scores by query, in the order of the run file."""
    raw_scores = read_raw_scores(folder)
    documents: dict[str, list[str]] = {}
    for line in gzip.decompress((folder / "run.trec.gz").read_bytes()).decode().splitlines():
        query, _, document, *_ = line.split()
        documents.setdefault(query, []).append(document)
    return {query: list(zip(names, raw_scores[query], strict=True)) for query, names in documents.items()}


def compare_runs(before: Path, after: Path) -> str | None:
    """The first difference of two runs; a run file that was not committed is not compared."""
    if not (before / "run.trec.gz").exists():
        return None
    old, new = read_run(before), read_run(after)
    if {query: len(ranking) for query, ranking in old.items()} != {query: len(new[query]) for query in new}:
        return "the run file has other queries or lengths"
    for query, ranking in old.items():
        scores = dict(new[query])
        by_rank = max(abs(a[1] - b[1]) for a, b in zip(ranking, new[query], strict=True))
        by_document = max(abs(score - scores.get(name, ranking[-1][1])) for name, score in ranking)
        if max(by_rank, by_document) > TOLERANCE:
            return f"query {query}: the score of a document differs by {max(by_rank, by_document):.2e}"
    return None


def compare_records(cell: CommittedCell, answer: dict[str, Any]) -> str | None:
    """What differs between the committed cell and the new one."""
    if answer["settings_id"] != cell.record["settings_id"]:
        return f"settings-id {answer['settings_id']}, committed {cell.record['settings_id']}"
    for name, score in cell.record["scores"].items():
        if abs(answer["scores"][name] - score) > TOLERANCE:
            return f"{name} {answer['scores'][name]:.6f}, committed {score:.6f}"
    return compare_runs(cell.folder, Path(answer["record"]))


def reproduce(cell: CommittedCell, out: Path) -> str | None:
    call = subprocess.run(cell.command(out), capture_output=True, text=True, check=False, cwd=ROOT)
    if call.returncode:
        return call.stderr.strip() or f"exit code {call.returncode}"
    return compare_records(cell, json.loads(call.stdout)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--documents", type=int, default=1000, help="leave out larger collections")
    options = parser.parse_args()
    cells, failed = list(find_cells(options.models, options.documents)), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, cell in enumerate(cells):
            difference = reproduce(cell, Path(folder) / str(number))
            failed += difference is not None
            name = f"{cell.record['model']} on {cell.record['task']} ({cell.record['settings_id']})"
            print(
                f"{'DIFFERENT' if difference else 'same':10}{name}{': ' + difference if difference else ''}", flush=True
            )
    print(f"{len(cells) - failed} of {len(cells)} cells are the same")
    return 1 if failed or not cells else 0


if __name__ == "__main__":
    sys.exit(main())
