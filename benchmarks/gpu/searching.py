"""Speed of exact search over vectors in host memory, against brute force in torch with all vectors on the device."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.result_log import ResultLog, compute_median, measure_seconds, release_memory
from retbench.engines import memory
from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

ROWS, QUERIES, WIDTHS = (1_000_000, 6980, (896, 3584)) if CUDA else (3000, 70, (64, 96))
DEPTH = 100
BLOCK_ROWS = 2048  # rows of a stored shard
PILOT_ROWS = 65_536 if CUDA else 1024
TILE, QUERY_TILE = 131_072, 1024
SAMPLE_QUERIES = 64  # queries whose ids are compared
REPEATS = 3


def measure(log: ResultLog) -> None:
    """Measure the small width first; the large one gets the remaining time."""
    for number, width in enumerate(WIDTHS):
        with log.record_errors("search", width=width):
            share = log.seconds_left() * (0.35 if number == 0 else 1.0)
            SearchBenchmark(log, width, time.time() + share).measure()
        release_memory()


class SearchBenchmark:
    """Exact search at one vector width."""

    def __init__(self, log: ResultLog, width: int, ends: float) -> None:
        self.log, self.width, self.deadline = log, width, ends
        self.queries = draw_unit_vectors(QUERIES, width, 1).cpu().numpy()
        self.documents = np.empty((ROWS, width), dtype=np.float32)
        self.rows = 0
        self.seconds: list[float] = []

    def measure(self) -> None:
        """Measure a pilot, choose the number of rows by its speed, then measure both sides."""
        generated = measure_seconds(lambda: self.generate_documents(PILOT_ROWS))
        self.run_exact_search(PILOT_ROWS)  # warm-up: loads kernels and touches memory pages
        pace = (measure_seconds(lambda: self.run_exact_search(PILOT_ROWS)) + generated) / PILOT_ROWS
        self.log.write_row(
            "timing", side="pilot", width=self.width, rows=PILOT_ROWS, seconds=round(pace * PILOT_ROWS, 3)
        )
        room = int((self.deadline - time.time()) * 0.4 / pace)
        rows = min(ROWS, max(PILOT_ROWS, room // PILOT_ROWS * PILOT_ROWS if room < ROWS else ROWS))
        self.generate_documents(rows)
        memory.reset_peak_memory()
        ranking: list[Ranking] = []
        self.seconds.append(measure_seconds(lambda: ranking.append(self.run_exact_search(rows))))
        self.log.write_row("timing", side="ours", width=self.width, rows=rows, seconds=round(self.seconds[0], 3))
        peak_mb, copied = memory.get_peak_memory_mb(), measure_seconds(lambda: self.copy_to_device(rows))
        facts: dict[str, Any] = {"measured": CUDA, "width": self.width, "rows": rows, "wanted_rows": ROWS,
                                 "queries": QUERIES, "k": DEPTH, "peak_mb": round(peak_mb),
                                 "copy_seconds": round(copied, 3)}  # fmt: skip
        with self.log.record_errors("peer", width=self.width):
            facts |= self.measure_peers(rows, ranking[0])
        while time.time() + self.seconds[0] < self.deadline and len(self.seconds) < REPEATS:
            self.seconds.append(measure_seconds(lambda: self.run_exact_search(rows)))
        facts |= {"seconds": [round(one, 3) for one in self.seconds], "repeats": len(self.seconds)}
        self.log.write_row("search", ours=round(compute_median(self.seconds), 3), **facts)

    def generate_documents(self, rows: int) -> None:
        """Draw documents on the device and copy them to host memory."""
        for start in range(self.rows, rows, PILOT_ROWS):
            end = min(start + PILOT_ROWS, rows)
            torch.from_numpy(self.documents[start:end]).copy_(draw_unit_vectors(end - start, self.width, 10 + start))
        self.rows = max(self.rows, rows)

    def run_exact_search(self, rows: int) -> Ranking:
        """Our side: search as in a run over stored vectors."""
        return exact_search.search_exactly(self.queries, self.iterate_blocks(rows), DEPTH)

    def iterate_blocks(self, rows: int) -> Iterator[VectorBlock]:
        """Blocks as the shard store yields them."""
        for start in range(0, rows, BLOCK_ROWS):
            end = min(start + BLOCK_ROWS, rows)
            yield VectorBlock(np.arange(start, end), self.documents[start:end])

    def copy_to_device(self, rows: int) -> None:
        """Only copy the vectors to the device, to measure that part alone."""
        for block in self.iterate_blocks(rows):
            torch.from_numpy(block.vectors).to(DEVICE)

    def measure_peers(self, rows: int, ranking: Ranking) -> dict[str, Any]:
        """Measure torch with the whole corpus on the device, and the share of equal ids."""
        documents = torch.from_numpy(self.documents[:rows]).to(DEVICE)
        queries = torch.from_numpy(self.queries).to(DEVICE)
        sample = queries[:SAMPLE_QUERIES]
        ids = np.stack(ranking.rows[:SAMPLE_QUERIES])
        found: dict[str, Any] = {
            "sample": len(sample),
            "agrees_with_float64": compute_agreement(ids, search_by_brute_force(sample, documents, torch.float64)),
            "agrees_with_float32": compute_agreement(ids, search_by_brute_force(sample, documents, torch.float32)),
        }
        timings = {"torch_float32": (queries, documents)}
        found |= {key: round(measure_brute_force(*sides), 3) for key, sides in timings.items()}
        short = documents.bfloat16()
        del documents
        found["torch_bfloat16"] = round(measure_brute_force(queries.bfloat16(), short), 3)
        found["bfloat16_agrees_with_ours"] = compute_agreement(
            ids, search_by_brute_force(queries[:SAMPLE_QUERIES].bfloat16(), short, torch.bfloat16)
        )
        found["faiss_gpu"] = self.measure_faiss(rows)
        return found

    def measure_faiss(self, rows: int) -> Any:
        """Seconds of faiss' flat index on the GPU, if it is installed."""
        try:
            import faiss
        except ImportError:
            return "not present"
        if not hasattr(faiss, "StandardGpuResources"):
            return "not present"
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), self.width)
        index.add(self.documents[:rows])
        return round(measure_seconds(lambda: index.search(self.queries, DEPTH)), 3)


def draw_unit_vectors(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random unit vectors, the same at every call."""
    made = torch.Generator(device=DEVICE).manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, device=DEVICE, generator=made), dim=1)


def measure_brute_force(queries: torch.Tensor, documents: torch.Tensor) -> float:
    """The smaller time of two runs."""
    return min(measure_seconds(lambda: search_by_brute_force(queries, documents, queries.dtype)) for _ in range(2))


def search_by_brute_force(queries: torch.Tensor, documents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrix products tile by tile with a running top-k."""
    tile = TILE // 4 if dtype == torch.float64 else TILE
    return torch.cat([_search_tile(part.to(dtype), documents, tile) for part in torch.split(queries, QUERY_TILE)])


def _search_tile(queries: torch.Tensor, documents: torch.Tensor, tile: int) -> torch.Tensor:
    scores, rows = None, None
    for start in range(0, len(documents), tile):
        part = queries @ documents[start : start + tile].to(queries.dtype).T
        values, places = part.topk(min(DEPTH, part.shape[1]), dim=1)
        places = places + start
        if scores is not None and rows is not None:
            values, places = torch.cat((scores, values), dim=1), torch.cat((rows, places), dim=1)
        scores, chosen = values.topk(DEPTH, dim=1)
        rows = places.gather(1, chosen)
    assert rows is not None
    return rows


def compute_agreement(ids: np.ndarray, rows: torch.Tensor) -> float:
    """The share of equal ids in the top-k, averaged over queries."""
    other = rows.cpu().numpy()
    return round(float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, other, strict=True)])), 6)
