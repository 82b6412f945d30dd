"""Exact search against faiss's flat index: the same vectors, the same threads, ids compared, in one run.

    python benchmarks/bench_search.py

The product alone is timed too: no exact search in float32 can be faster than it, and faiss is often near it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from retbench.retrievers.exact import search
from retbench.store.shards import Block

HERE = Path(__file__).parent
SHARD = 2048
SHAPES = ((20_000, 10, 384), (20_000, 300, 384), (20_000, 1000, 768), (100_000, 300, 576))  # documents, queries, width


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def fastest(call: Callable[[], Any], times: int) -> tuple[float, Any]:
    best, found = float("inf"), None
    for _ in range(times):
        started = time.perf_counter()
        found = call()
        best = min(best, time.perf_counter() - started)
    return best, found


def compare(documents: int, queries: int, width: int, options: argparse.Namespace) -> dict[str, Any]:
    matrix, asked = unit(documents, width, 1), unit(queries, width, 2)
    starts = range(0, documents, SHARD)
    blocks = [Block(np.arange(at, min(documents, at + SHARD)), matrix[at : at + SHARD]) for at in starts]
    index = faiss.IndexFlatIP(width)
    index.add(matrix)
    ours, ranking = fastest(lambda: search(asked, blocks, options.k), options.times)
    theirs, (_, ids) = fastest(lambda: index.search(asked, options.k), options.times)
    product, _ = fastest(
        lambda: [torch.from_numpy(asked) @ torch.from_numpy(b.vectors).T for b in blocks], options.times
    )
    same = np.mean([set(rows) == set(wanted) for rows, wanted in zip(ranking.rows, ids, strict=True)])
    facts = {"documents": documents, "queries": queries, "width": width, "seconds": ours, "faiss_seconds": theirs}
    return {
        **facts,
        "product_seconds": product,
        "faster_than_faiss": theirs / ours,
        "queries_with_equal_ids": float(same),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rows = [compare(*shape, options) for shape in SHAPES]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"threads": options.threads, "k": options.k, "shapes": rows}, indent=1) + "\n")
    print(
        "| documents | queries | width | retbench s | faiss flat s | product alone s | faster than faiss | equal ids |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['documents']:,} | {row['queries']:,} | {row['width']} | {row['seconds']:.3f} | "
            f"{row['faiss_seconds']:.3f} | {row['product_seconds']:.3f} | {row['faster_than_faiss']:.2f}x | "
            f"{100 * row['queries_with_equal_ids']:.1f}% |"
        )


if __name__ == "__main__":
    main()
