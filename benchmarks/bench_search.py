"""Speed of exact search against faiss' flat index: same vectors, same threads, ids compared, in one run.

    python -m benchmarks.bench_search
    python -m benchmarks.bench_search --memory     peak memory of 502,939 queries over 50,000 documents

If the ids of a query differ, both results are scored in float64: `lost` is the sum of faiss' k scores minus the sum of
ours, so below 0 ours is better. CPU seconds are measured too, because other work on the machine slows only the clock.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.write_tables import format_search_table
from retbench.engines.device import has_fast_bf16
from retbench.engines.memory import get_peak_memory_mb
from retbench.retrievers.exact_search import search_exactly
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

HERE = Path(__file__).parent
SHARD = 2048
SHAPES = (  # documents, queries, width
    (20_000, 10, 384),
    (20_000, 300, 384),
    (20_000, 1000, 768),
    (100_000, 300, 576),
    (100_000, 1000, 384),
)
MANY_QUERIES, MANY_DOCUMENTS, NARROW = 502_939, 50_000, 64


def draw_unit_vectors(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def split_into_shards(matrix: np.ndarray) -> Iterator[VectorBlock]:
    for at in range(0, len(matrix), SHARD):
        yield VectorBlock(np.arange(at, min(len(matrix), at + SHARD)), matrix[at : at + SHARD])


def measure_fastest(call: Callable[[], Any], times: int) -> tuple[dict[str, float], Any]:
    """The smallest wall-clock and CPU seconds over all repetitions."""
    clock, cpu, found = [], [], None
    for _ in range(times):
        started, spent = time.perf_counter(), time.process_time()
        found = call()
        clock.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
    return {"seconds": min(clock), "cpu_seconds": min(cpu)}, found


def compute_lost_scores(asked: np.ndarray, matrix: np.ndarray, ours: Ranking, theirs: np.ndarray) -> list[float]:
    """For each query with different ids: the float64 score sum of faiss' result minus that of ours."""
    found = []
    for query, rows, others in zip(asked.astype(np.float64), ours.rows, theirs, strict=True):
        if set(rows) != set(others):
            found.append(float((matrix[others] @ query).sum() - (matrix[rows] @ query).sum()))
    return found


def compare_with_faiss(documents: int, queries: int, width: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    matrix, asked = draw_unit_vectors(documents, width, 1), draw_unit_vectors(queries, width, 2)
    index = faiss.IndexFlatIP(width)
    index.add(matrix)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        ours, ranking = measure_fastest(
            lambda: search_exactly(asked, split_into_shards(matrix), options.k), options.times
        )
        theirs, (_, ids) = measure_fastest(lambda: index.search(asked, options.k), options.times)
        others = compute_lost_scores(asked, matrix, ranking, ids)
        rows.append({
            "documents": documents, "queries": queries, "width": width, "threads": threads, "retbench": ours,
            "faiss": theirs, "faster": theirs["seconds"] / ours["seconds"],
            "faster_by_cpu": theirs["cpu_seconds"] / ours["cpu_seconds"],
            "queries_with_other_ids": len(others), "most_lost": max(others, default=0.0),
        })  # fmt: skip
    return rows


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    matrix, asked = draw_unit_vectors(MANY_DOCUMENTS, NARROW, 1), draw_unit_vectors(MANY_QUERIES, NARROW, 2)
    search_exactly(asked[:600], split_into_shards(matrix), options.k)  # warm-up of torch
    torch.set_num_threads(max(options.threads))
    before, started = get_peak_memory_mb(), time.perf_counter()
    found = search_exactly(asked, split_into_shards(matrix), options.k)
    seconds, grown = time.perf_counter() - started, get_peak_memory_mb() - before
    return {
        "queries": MANY_QUERIES, "documents": MANY_DOCUMENTS, "width": NARROW, "k": options.k, "seconds": seconds,
        "peak_mb": get_peak_memory_mb(), "grown_mb": grown, "queries_mb": asked.nbytes / 1e6,
        "ranking_mb": sum(rows.nbytes for rows in (*found.rows, *found.scores)) / 1e6,
        "all_scores_mb": 4 * MANY_QUERIES * MANY_DOCUMENTS / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or HERE / "results" / ("search_memory.json" if options.memory else "search.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.bench_search", *sys.argv[1:]]),
        "k": options.k,
        "fast_bf16": has_fast_bf16(),
    }
    facts |= {"torch": torch.__version__, "faiss": faiss.__version__, "python": platform.python_version()}
    if options.memory:
        facts |= measure_memory(options)
        print(json.dumps(facts, indent=1))
    else:
        facts["shapes"] = []
        for shape in SHAPES:
            facts["shapes"] += compare_with_faiss(*shape, options)
            out.write_text(
                json.dumps(facts, indent=1) + "\n"
            )  # written after each shape, so that partial results are kept
        print(format_search_table(facts))
    out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
