"""Speed and memory of search over compressed vectors, against exact search in float32 and faiss, in one run.

    python -m benchmarks.bench_compressed

The peers are faiss' IndexBinaryFlat and IndexScalarQuantizer (QT_8bit), with the same vectors, threads and k. Codes are
made before the clock starts on both sides. `recall` is the share of exact search's top k in the result: by the codes
alone, and with the first 10 k scored again (retbench only; its seconds contain reading the float vectors from memory).
The vectors have a covariance that falls with the number of the dimension, as those of a language model have.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.bench_search import measure_fastest
from retbench.cards.ann_settings import BinarySettings, Int8Settings
from retbench.retrievers.compressed_search import (
    CompressedSearch,
    compress_vectors,
    has_exact_int8_product,
    rescore_ranking,
)
from retbench.retrievers.exact_search import search_exactly
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

HERE = Path(__file__).parent
SHAPES = ((100_000, 300, 384), (100_000, 10, 384), (50_000, 1000, 1024))  # documents, queries, width
SHARD = 8192


def draw_unit_vectors(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    drawn /= np.sqrt(1 + np.arange(width, dtype=np.float32))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def split_into_blocks(matrix: np.ndarray) -> list[VectorBlock]:
    starts = range(0, len(matrix), SHARD)
    return [VectorBlock(np.arange(at, min(len(matrix), at + SHARD)), matrix[at : at + SHARD]) for at in starts]


def compute_recall(found: Any, exact: Ranking) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact.rows, strict=True)]))


def build_peer(name: str, matrix: np.ndarray) -> Any:
    width = matrix.shape[1]
    if name == "binary":
        binary_peer = faiss.IndexBinaryFlat(width)
        binary_peer.add(np.packbits(matrix > 0, axis=1))
        return binary_peer
    peer = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    peer.train(matrix)
    peer.add(matrix)
    return peer


def compare(documents: int, queries: int, width: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    matrix, asked, k = draw_unit_vectors(documents, width, 1), draw_unit_vectors(queries, width, 2), options.k
    blocks, rows = split_into_blocks(matrix), []
    exact_time, exact = measure_fastest(lambda: search_exactly(asked, blocks, k), options.times)
    for settings in (Int8Settings(10 * k), BinarySettings(10 * k)):
        codes, peer = compress_vectors(matrix, settings.name), build_peer(settings.name, matrix)
        inputs = np.packbits(asked > 0, axis=1) if settings.name == "binary" else asked

        def search(depth: int, settings: Any = settings, codes: Any = codes) -> Ranking:
            found = CompressedSearch(settings.name, asked, depth)
            found.add_codes(np.arange(documents), codes)
            return found.finish()

        ours, found = measure_fastest(lambda: search(k), options.times)  # called at once
        with_rescoring, rescored = measure_fastest(
            lambda: rescore_ranking(search(10 * k), asked, blocks, 10 * k),
            options.times,
        )
        theirs, (_, ids) = measure_fastest(lambda: peer.search(inputs, k), options.times)  # noqa: B023  # called at once
        rows.append({
            "search": settings.name, "documents": documents, "queries": queries, "width": width,
            "bytes_per_document": codes.nbytes / documents, "float_bytes_per_document": 4 * width,
            "retbench": ours, "retbench_with_rescoring": with_rescoring, "retbench_exact": exact_time, "faiss": theirs,
            "faster_than_exact": exact_time["cpu_seconds"] / ours["cpu_seconds"],
            "faster_than_exact_with_rescoring": exact_time["cpu_seconds"] / with_rescoring["cpu_seconds"],
            "faster_than_faiss": theirs["cpu_seconds"] / ours["cpu_seconds"],
            "recall": compute_recall(found.rows, exact), "recall_of_faiss": compute_recall(ids, exact),
            "recall_with_rescoring": compute_recall([found[:k] for found in rescored.rows], exact),
        })  # fmt: skip
    return rows


def format_table(rows: list[dict[str, Any]]) -> None:
    print("| search | documents | queries | width | bytes | recall | rescored | to float | rescored | to faiss |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['search']} | {row['documents']:,} | {row['queries']} | {row['width']} | "
            f"{row['bytes_per_document']:,.0f} of {row['float_bytes_per_document']:,} | {row['recall']:.3f} | "
            f"{row['recall_with_rescoring']:.3f} | {row['faster_than_exact']:.1f}x | "
            f"{row['faster_than_exact_with_rescoring']:.1f}x | {row['faster_than_faiss']:.1f}x |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("DOCUMENTS", "QUERIES", "WIDTH"))
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compressed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    facts: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "k": options.k, "threads": 1}
    facts |= {"torch": torch.__version__, "faiss": faiss.__version__, "python": platform.python_version()}
    facts |= {"exact_int8_product": has_exact_int8_product(), "cpu": platform.processor() or platform.machine()}
    facts["shapes"] = [row for d, q, w in options.shape or SHAPES for row in compare(d, q, w, options)]
    format_table(facts["shapes"])
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
